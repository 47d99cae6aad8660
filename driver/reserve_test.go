package driver_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// freePort returns a port that nobody has on the loopback addresses.
func freePort(t *testing.T, proto model.Proto) uint16 {
	t.Helper()
	var probe net.Addr
	if proto == model.UDP {
		c, err := net.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		probe = c.LocalAddr()
	} else {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		probe = l.Addr()
	}
	at, err := netip.ParseAddrPort(probe.String())
	if err != nil {
		t.Fatal(err)
	}
	return at.Port()
}

// listen opens what another program would.
func listen(t *testing.T, proto model.Proto, addr netip.Addr, port uint16) (func() error, error) {
	t.Helper()
	at := netip.AddrPortFrom(addr, port).String()
	if proto == model.UDP {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			return nil, err
		}
		return c.Close, nil
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

// app is a claim of one and the same owner.
func app(proto model.Proto, addr netip.Addr, port uint16) driver.Claim {
	return driver.Claim{Reservation: driver.Reservation{Proto: proto, Addr: addr, Port: port}, Owner: "app"}
}

func TestReserver(t *testing.T) {
	for _, proto := range []model.Proto{model.TCP, model.UDP} {
		for _, addr := range []netip.Addr{loopback, netip.IPv4Unspecified(), netip.IPv6Loopback(), netip.IPv6Unspecified()} {
			t.Run(fmt.Sprint(proto, addr), func(t *testing.T) {
				if addr.Is6() {
					if c, err := listen(t, proto, netip.IPv6Loopback(), 0); err != nil {
						t.Skip("no IPv6 here")
					} else {
						_ = c()
					}
				}
				r := driver.NewReserver(nil)
				t.Cleanup(r.Close)
				port := freePort(t, proto)
				want := app(proto, addr, port)
				for range 2 {
					if errs := r.Set([]driver.Claim{want}); errs != nil {
						t.Fatalf("reserving: %v", errs)
					}
				}
				if diff := cmp.Diff([]driver.Claim{want}, r.Held(), compareAddrs); diff != "" {
					t.Errorf("held (-want +got)\n%s", diff)
				}
				if _, err := listen(t, proto, addr, port); !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("another program got the port: %v", err)
				}

				other := driver.NewReserver(nil)
				t.Cleanup(other.Close)
				text := fmt.Sprintf("Bind for %v failed: port is already allocated", netip.AddrPortFrom(addr, port))
				if errs := other.Set([]driver.Claim{want}); len(errs) != 1 || errs[want] == nil || errs[want].Error() != text {
					t.Errorf("second reserver: %v, want %s", errs, text)
				}

				r.Set(nil)
				stop, err := listen(t, proto, addr, port)
				if err != nil {
					t.Fatalf("after release: %v", err)
				}
				if errs := r.Set([]driver.Claim{want}); len(errs) != 1 || errs[want] == nil || errs[want].Error() != text {
					t.Errorf("under another program: %v, want %s", errs, text)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if errs := r.Set([]driver.Claim{want}); errs != nil {
					t.Errorf("once it is free: %v", errs)
				}
			})
		}
	}
}

// Two addresses of one port are two reservations; all addresses and one clash.
func TestReserverAddresses(t *testing.T) {
	r := driver.NewReserver(nil)
	t.Cleanup(r.Close)
	port := freePort(t, model.TCP)
	one := app(model.TCP, loopback, port)
	two := app(model.TCP, netip.MustParseAddr("127.0.0.2"), port)
	away := app(model.TCP, netip.MustParseAddr("192.0.2.1"), port) // not on this host
	udp := app(model.UDP, loopback, port)
	all := app(model.TCP, netip.IPv4Unspecified(), port)
	if errs := r.Set([]driver.Claim{one, two, away, udp}); errs != nil {
		t.Fatal(errs)
	}
	if errs := r.Set([]driver.Claim{one, all}); len(errs) != 1 || errs[all] == nil {
		t.Errorf("all beside one: %v", errs)
	}
	if errs := r.Set([]driver.Claim{all}); errs != nil {
		t.Errorf("from one to all: %v", errs)
	}
	bad := app(33, loopback, port)
	if errs := r.Set([]driver.Claim{bad}); errs[bad] == nil || !strings.HasSuffix(errs[bad].Error(), "protocol 33 is not supported") {
		t.Errorf("DCCP: %v", errs)
	}
}

// One socket stands for a port, and who had it first keeps it.
func TestReserverOwners(t *testing.T) {
	r := driver.NewReserver(nil)
	t.Cleanup(r.Close)
	port := freePort(t, model.TCP)
	by := func(addr netip.Addr, owner string) driver.Claim {
		c := app(model.TCP, addr, port)
		c.Owner = owner
		return c
	}
	all, other := netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.2")
	steps := []struct {
		name    string
		claims  []driver.Claim
		refused []driver.Claim
		held    []driver.Claim
	}{
		{"the first by owner", []driver.Claim{by(loopback, "b"), by(loopback, "c")}, []driver.Claim{by(loopback, "c")}, []driver.Claim{by(loopback, "b")}},
		{"who has it keeps it", []driver.Claim{by(loopback, "a"), by(loopback, "c"), by(loopback, "b")}, []driver.Claim{by(loopback, "a"), by(loopback, "c")}, []driver.Claim{by(loopback, "b")}},
		{"the second of the same owner", []driver.Claim{by(loopback, "b"), by(loopback, "b")}, []driver.Claim{by(loopback, "b")}, []driver.Claim{by(loopback, "b")}},
		{"who has one address keeps it from who wants all", []driver.Claim{by(all, "a"), by(loopback, "b")}, []driver.Claim{by(all, "a")}, []driver.Claim{by(loopback, "b")}},
		{"handed over", []driver.Claim{by(loopback, "d"), by(loopback, "c")}, []driver.Claim{by(loopback, "d")}, []driver.Claim{by(loopback, "c")}},
		{"released before another is bound", []driver.Claim{by(all, "d")}, nil, []driver.Claim{by(all, "d")}},
		{"all addresses before one, where both are new", nil, nil, nil},
		{"all addresses before one", []driver.Claim{by(other, "a"), by(all, "d"), by(loopback, "a")}, []driver.Claim{by(other, "a"), by(loopback, "a")}, []driver.Claim{by(all, "d")}},
	}
	for _, s := range steps {
		errs := r.Set(s.claims)
		for _, c := range s.refused {
			want := fmt.Sprintf("Bind for %v failed: port is already allocated", netip.AddrPortFrom(c.Addr, c.Port))
			if err := errs[c]; err == nil || err.Error() != want {
				t.Errorf("%s: %v: got %v, want %s", s.name, c, err, want)
			}
		}
		if len(errs) != len(s.refused) {
			t.Errorf("%s: refused %v, want %v", s.name, errs, s.refused)
		}
		if diff := cmp.Diff(s.held, r.Held(), compareAddrs); diff != "" {
			t.Errorf("%s: held (-want +got)\n%s", s.name, diff)
		}
	}
}

// A port that changes hands is free for nobody in between.
func TestReserverHandsOverTheSocket(t *testing.T) {
	r := driver.NewReserver(nil)
	t.Cleanup(r.Close)
	c := app(model.UDP, loopback, freePort(t, model.UDP))
	inode := func() string { return udpSocket(t, c.Port)[9] }
	if errs := r.Set([]driver.Claim{c}); errs != nil {
		t.Fatal(errs)
	}
	before := inode()
	c.Owner = "successor"
	if errs := r.Set([]driver.Claim{c}); errs != nil || inode() != before {
		t.Errorf("%v, socket %s became %s", errs, before, inode())
	}
}

func TestReservedPortsDoNotAnswer(t *testing.T) {
	r := driver.NewReserver(nil)
	t.Cleanup(r.Close)
	tcp := app(model.TCP, loopback, freePort(t, model.TCP))
	udp := app(model.UDP, loopback, freePort(t, model.UDP))
	if errs := r.Set([]driver.Claim{tcp, udp}); errs != nil {
		t.Fatal(errs)
	}
	unanswered(t, netip.AddrPortFrom(tcp.Addr, tcp.Port))
	c, err := net.Dial("udp", netip.AddrPortFrom(udp.Addr, udp.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 100 {
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			t.Fatalf("writing: %v", err)
		}
	}
	f := udpSocket(t, udp.Port)
	for end := time.Now().Add(5 * time.Second); f[12] != "100" && time.Now().Before(end); f = udpSocket(t, udp.Port) { // softirqs may be late
	}
	_, queued, _ := strings.Cut(f[4], ":")
	if drops := f[12]; queued != "00000000" || drops != "100" {
		t.Errorf("queued %s bytes, dropped %s packets; want none and 100", queued, drops)
	}
}

// udpSocket returns the kernel's line about a socket on 127.0.0.1.
func udpSocket(t *testing.T, port uint16) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) > 12 && f[1] == fmt.Sprintf("0100007F:%04X", port) {
			return f
		}
	}
	t.Fatalf("no UDP socket on port %d", port)
	return nil
}

func TestPick(t *testing.T) {
	first := uint16(22400)
	busy, err := listen(t, model.TCP, netip.IPv4Unspecified(), first)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = busy() }()
	notNext := func(p uint16) bool { return p != first+1 }
	three := []uint16{first, first + 1, first + 2}
	if got, err := driver.Pick(model.TCP, netip.Addr{}, slices.Values(three), notNext); err != nil || got != first+2 {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := driver.Pick(model.TCP, loopback, slices.Values(three[:2]), notNext); err == nil || err.Error() != "all ports are allocated" {
		t.Errorf("none left: %v", err)
	}
}

// Where the kernel has SCTP its ports are held as others are; elsewhere the
// reason is said.
func TestReserveSCTP(t *testing.T) {
	r := driver.NewReserver(nil)
	defer r.Close()
	claim := app(model.SCTP, loopback, 22410)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		want := "SCTP ports cannot be published: this host's kernel has no SCTP (modprobe sctp)"
		if got := r.Set([]driver.Claim{claim})[claim]; got == nil || got.Error() != want {
			t.Errorf("got %v, want %q", got, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if errs := r.Set([]driver.Claim{claim}); errs != nil {
		t.Fatal(errs)
	}
	at := &unix.SockaddrInet4{Port: 22410, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(fd, at); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("somebody else binds the port: %v", err)
	}
}
