package driver_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

var loopback6 = netip.IPv6Loopback()

// proxied is a claim whose port is taken to another.
func proxied(proto model.Proto, addr netip.Addr, port uint16, to netip.AddrPort) driver.Claim {
	c := app(proto, addr, port)
	c.Proxy = driver.Proxied{To: to, Loopback: addr == netip.IPv6Unspecified()}
	return c
}

// hold reserves until the test ends.
func hold(t *testing.T, claims ...driver.Claim) *driver.Reserver {
	t.Helper()
	if _, err := listen(t, model.TCP, loopback6, 0); err != nil {
		t.Skip("no IPv6 here")
	}
	r := driver.NewReserver(nil)
	t.Cleanup(r.Close)
	claim(t, r, claims...)
	return r
}

// claim reserves and serves.
func claim(t *testing.T, r *driver.Reserver, claims ...driver.Claim) {
	t.Helper()
	if errs := r.Set(claims); errs != nil {
		t.Fatal(errs)
	}
	if err := r.Serve(); err != nil {
		t.Fatal(err)
	}
}

// container listens on 127.0.0.1 and serves each connection; it returns where.
func container(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, to.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// Each side may end what it says, and the other goes on.
func TestProxyEndsOneWay(t *testing.T) {
	to := container(t, func(c net.Conn) {
		if b, err := io.ReadAll(c); err == nil { // until the client ends
			_, _ = fmt.Fprintf(c, "got %d", len(b))
		}
	})
	for _, addr := range []netip.Addr{loopback6, netip.IPv6Unspecified()} {
		port := freePort(t, model.TCP)
		hold(t, proxied(model.TCP, addr, port, to))
		c := dial(t, "tcp", netip.AddrPortFrom(loopback6, port))
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "got 1048576" {
			t.Errorf("at %v: %q, %v", addr, got, err)
		}
	}
}

// A container that refuses has its caller reset; what is open when a port is not
// published any more, or goes elsewhere, is reset, too.
func TestProxyResets(t *testing.T) {
	port := freePort(t, model.TCP)
	echo := func(c net.Conn) { _, _ = io.Copy(c, c) }
	closed, to, next := netip.AddrPortFrom(loopback, freePort(t, model.TCP)), container(t, echo), container(t, echo)
	r := hold(t, proxied(model.TCP, loopback6, port, closed))
	at := netip.AddrPortFrom(loopback6, port)
	refused, err := net.Dial("tcp", at.String())
	if err == nil {
		defer refused.Close()
		_, err = refused.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("of a container that refuses: %v", err)
	}
	ping := func() net.Conn {
		c := dial(t, "tcp", at)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, to := range []netip.AddrPort{to, next} {
		claim(t, r, proxied(model.TCP, loopback6, port, to))
		c := ping()
		defer func() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after the end: %v", err)
			}
		}()
	}
	r.Set(nil)
	// Nothing that remains of the connections keeps the next from the port.
	if errs := r.Set([]driver.Claim{app(model.TCP, loopback6, port)}); errs != nil {
		t.Errorf("reserved again: %v", errs)
	}
}

// What waits when a port's proxy ends is not for who has the port next.
func TestProxyForgetsWhatWaits(t *testing.T) {
	port := freePort(t, model.TCP)
	at := netip.AddrPortFrom(loopback6, port)
	first := container(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	next := container(t, func(c net.Conn) { _, _ = c.Write([]byte("from the next")) })
	r := hold(t, proxied(model.TCP, loopback6, port, first))
	for range 1024 { // what one port has room for
		c := dial(t, "tcp", at)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	waits := dial(t, "tcp", at)
	claim(t, r, app(model.TCP, loopback6, port))
	if _, err := waits.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what waited: %v", err)
	}
	unanswered(t, at)
	claim(t, r, proxied(model.TCP, loopback6, port, next))
	if got, err := io.ReadAll(dial(t, "tcp", at)); err != nil || string(got) != "from the next" {
		t.Errorf("the next: %q, %v", got, err)
	}
}

// A proxy is heard when it serves, and not before.
func TestProxyServesLater(t *testing.T) {
	port := freePort(t, model.TCP)
	r := hold(t)
	to := container(t, func(c net.Conn) { _, _ = c.Write([]byte("hello")) })
	if errs := r.Set([]driver.Claim{proxied(model.TCP, loopback6, port, to)}); errs != nil {
		t.Fatal(errs)
	}
	unanswered(t, netip.AddrPortFrom(loopback6, port))
	if err := r.Serve(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(dial(t, "tcp", netip.AddrPortFrom(loopback6, port))); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// A port of all addresses, which NAT serves, is proxied at ::1 alone.
func TestProxyOfLoopbackOnly(t *testing.T) {
	to := container(t, func(c net.Conn) { _, _ = c.Write([]byte("hello")) })
	other, ok := otherAddr6()
	if !ok {
		t.Skip("no IPv6 address but ::1 here")
	}
	port := freePort(t, model.TCP)
	hold(t, proxied(model.TCP, netip.IPv6Unspecified(), port, to))
	if got, err := io.ReadAll(dial(t, "tcp", netip.AddrPortFrom(loopback6, port))); err != nil || string(got) != "hello" {
		t.Errorf("at ::1: %q, %v", got, err)
	}
	unanswered(t, netip.AddrPortFrom(other, port))
}

// unanswered tries to connect to where nothing is to answer, and nothing to refuse.
func unanswered(t *testing.T, to netip.AddrPort) {
	t.Helper()
	var late net.Error
	if _, err := net.DialTimeout("tcp", to.String(), 300*time.Millisecond); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("at %v: %v", to, err)
	}
}

// otherAddr6 is an IPv6 address of this machine.
func otherAddr6() (netip.Addr, bool) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Each client is answered, by the container's answers to it alone, and more
// clients than there is room for are served after one another.
func TestProxyUDP(t *testing.T) {
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { // until it is closed
		buf := make([]byte, 65535)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, addr := range []netip.Addr{loopback6, netip.IPv6Unspecified()} {
		port := freePort(t, model.UDP)
		hold(t, proxied(model.UDP, addr, port, to))
		for i := range 600 {
			c := dial(t, "udp", netip.AddrPortFrom(loopback6, port))
			want := fmt.Sprintf("%d %s", i, make([]byte, i*100))
			if _, err := c.Write([]byte(want)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 65535)
			if n, err := c.Read(got); err != nil || string(got[:n]) != want {
				t.Fatalf("at %v, client %d: got %d bytes (%q), %v", addr, i, n, got[:min(n, 20)], err)
			}
		}
	}
}

// Two ports of this host that have a proxy do not talk to each other, as a forged
// source would make them forever.
func TestProxyUDPAnswersNoProxy(t *testing.T) {
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	one, two := freePort(t, model.UDP), freePort(t, model.UDP)
	// The other one is at an address that is away, so that the test has the port on ::1.
	hold(t, proxied(model.UDP, loopback6, one, to), proxied(model.UDP, netip.MustParseAddr("::2"), two, to))
	forged, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback6, two)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback6, one)))
	if err != nil {
		t.Fatal(err)
	}
	defer forged.Close()
	honest := dial(t, "udp", netip.AddrPortFrom(loopback6, one))
	for _, c := range []net.Conn{forged, honest} {
		if _, err := c.Write([]byte(c.LocalAddr().String())); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, _, err := server.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != honest.LocalAddr().String() {
		t.Errorf("the container heard %q, %v; want the honest one first", buf[:n], err)
	}
}

// A container that does not listen yet is asked again.
func TestProxyUDPRefused(t *testing.T) {
	port, inside := freePort(t, model.UDP), freePort(t, model.UDP)
	hold(t, proxied(model.UDP, loopback6, port, netip.AddrPortFrom(loopback, inside)))
	c := dial(t, "udp", netip.AddrPortFrom(loopback6, port))
	if _, err := c.Write([]byte("nobody hears")); err != nil {
		t.Fatal(err)
	}
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, inside)))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err == nil && string(buf[:n]) == "nobody hears" {
				continue // it was late enough
			}
			if err == nil {
				_, err = server.WriteToUDPAddrPort(buf[:n], from)
			}
			heard <- err
			return
		}
	}()
	if _, err := c.Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, err := c.Read(got); err != nil || string(got[:n]) != "now" {
		t.Errorf("%q, %v", got[:n], err)
	}
}
