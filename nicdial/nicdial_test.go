//go:build linux

package nicdial

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/netnstest"
)

func TestNew(t *testing.T) {
	for _, name := range []string{"eth1", "enp0s3.100", "172.31.0.14", "2001:db8::14", "02:42:ac:1f:00:0e"} {
		n, err := New(name)
		if err != nil || n.String() != name {
			t.Errorf("New(%q) = %v, %v", name, n, err)
		}
	}
	for _, name := range []string{"", "a name", "averyverylongname", "eth/1", "127.0.0.1", "0.0.0.0", "224.0.0.1", "fe80::1%eth0", "172.31.0.14:80"} {
		if n, err := New(name); err == nil {
			t.Errorf("New(%q) = %v, want an error", name, n)
		}
	}
}

func TestRealServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if got, err := realServers(path); got != nil || err != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
	text := "# by somebody\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch x\nnameserver\nnameserver 2001:db8::53\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := realServers(path)
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:53")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("servers (-want +got)\n%s%v", diff, err)
	}
}

// A loopback name server would ask by the host's own routing: an error, not a query.
func TestLocalNameServer(t *testing.T) {
	n := must(New("lo"))
	_, err := n.dialServer(t.Context(), "udp", "127.0.0.53:53")
	if _, there := os.Stat(upstream); there == nil {
		t.Skip("this host has a systemd-resolved")
	}
	if err == nil || !strings.Contains(err.Error(), "WithNameServers") {
		t.Errorf("dialing the name server: %v", err)
	}
}

func TestRouteError(t *testing.T) {
	err := error(&RouteError{NIC: "eth1", Source: netip.MustParseAddr("172.31.0.14"), Dst: netip.MustParseAddr("198.51.100.10")})
	if !errors.Is(err, ErrNoRoute) {
		t.Error("a RouteError is no ErrNoRoute")
	}
	for _, want := range []string{
		"198.51.100.10", "--nics eth1",
		"ip route add default via GATEWAY dev eth1 table 100 && ip rule add from 172.31.0.14 lookup 100",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

// What of a host is its NICs, and the errors about them.
func TestFind(t *testing.T) {
	netnstest.Run(t, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "eth1", net.HardwareAddr{2, 0, 0, 0, 0, 1}
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "bare"}
		check(t, netlink.LinkAdd(pair))
		check(t, netlink.LinkSetUp(pair))
		for _, a := range []string{"172.31.0.14/20", "172.31.0.15/20"} {
			check(t, netlink.AddrAdd(pair, must(netlink.ParseAddr(a))))
		}
		v6 := must(netlink.ParseAddr("2001:db8:31::14/64"))
		// The kernel lists the newest first: the private one is in the middle and at the front.
		for _, a := range []string{"fd00:31::13/64", v6.String(), "2001:db8:31::15/64", "fd00:31::14/64"} {
			a := must(netlink.ParseAddr(a))
			a.Flags = syscall.IFA_F_NODAD
			check(t, netlink.AddrAdd(pair, a))
		}

		type sources struct{ v4, v6 string }
		for name, want := range map[string]sources{
			"eth1":              {"172.31.0.14", "2001:db8:31::14"},
			"02:00:00:00:00:01": {"172.31.0.14", "2001:db8:31::14"},
			"172.31.0.15":       {"172.31.0.15", "2001:db8:31::14"},
			"2001:db8:31::15":   {"172.31.0.14", "2001:db8:31::15"},
			"fd00:31::14":       {"172.31.0.14", "fd00:31::14"},
		} {
			d, err := must(New(name)).find()
			if got := (sources{d.v4.String(), d.v6.String()}); err != nil || d.name != "eth1" || got != want {
				t.Errorf("%s: %+v, %v, want %v", name, d, err, want)
			}
		}
		for name, want := range map[string]error{"eth7": ErrNoNIC, "172.31.0.16": ErrNoNIC, "02:00:00:00:00:77": ErrNoNIC, "bare": ErrNoAddress} {
			n := must(New(name))
			if _, err := n.find(); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
			if err := n.Check(); !errors.Is(err, want) {
				t.Errorf("checking %s: %v, want %v", name, err, want)
			}
		}
		n := must(New("eth1"))
		if err := n.Check(); !errors.Is(err, ErrNoRoute) || strings.Count(err.Error(), "--nics eth1") != 2 {
			t.Errorf("without any default route: %v, want one error for each family", err)
		}
		for _, dst := range []string{"224.0.0.251", "255.255.255.255", "172.31.15.255", "ff02::fb"} {
			if _, err := must(n.find()).plan(netip.MustParseAddr(dst)); err == nil || errors.Is(err, ErrNoRoute) || !strings.Contains(err.Error(), "multicast and broadcast") {
				t.Errorf("reaching %s: %v", dst, err)
			}
		}
		for _, a := range must(netlink.AddrList(pair, netlink.FAMILY_V6)) {
			check(t, netlink.AddrDel(pair, &a))
		}
		if got, err := n.families("tcp", "example.com:80"); got != "tcp4" || err != nil {
			t.Errorf("names are looked up for %s (%v), though there is no IPv6 address", got, err)
		}
		if got, err := n.families("tcp", "[2001:db8::1]:80"); got != "tcp" || err != nil {
			t.Errorf("an address is dialed with %s (%v)", got, err)
		}
		if _, err := n.DialContext(t.Context(), "tcp", "[2001:db8::1]:80"); !errors.Is(err, ErrNoAddress) {
			t.Errorf("IPv6 without an IPv6 address: %v", err)
		}
		if _, err := n.ListenConfig().ListenPacket(t.Context(), "udp", ":5353"); err == nil || !strings.Contains(err.Error(), "ListenPacket") {
			t.Errorf("UDP on a wildcard address: %v", err)
		}
		if _, err := n.Listen(t.Context(), "tcp", "127.0.0.1:0"); !errors.Is(err, ErrNoNIC) {
			t.Errorf("listening on an address of no NIC: %v", err)
		}
		if _, err := n.Listen(t.Context(), "tcp6", ":0"); !errors.Is(err, ErrNoAddress) {
			t.Errorf("listening on IPv6 without an address: %v", err)
		}
		for _, addr := range []string{":0", "172.31.0.15:0"} {
			l, err := n.ListenConfig().Listen(t.Context(), "tcp", addr)
			check(t, err)
			l.Close()
		}
		for name, want := range map[string]string{"eth1": "::", "172.31.0.15": "172.31.0.15"} {
			l, err := must(New(name)).Listen(t.Context(), "tcp", ":0")
			check(t, err)
			defer l.Close()
			if at := l.Addr().(*net.TCPAddr); at.IP.String() != want {
				t.Errorf("%s listens on %v", name, at)
			}
			raw := must(l.(*net.TCPListener).SyscallConn())
			check(t, onSocket(raw, func(fd int) error {
				device, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
				if device != "eth1" {
					t.Errorf("%s listens by device %q", name, device)
				}
				return err
			}))
		}
	})
}

// Of links that share a MAC, as a bridge and its port do, it is the one with an address.
func TestFindMAC(t *testing.T) {
	netnstest.Run(t, func() {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "port", mac
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}))
		n := must(New(mac.String()))
		if _, err := n.find(); !errors.Is(err, ErrNoAddress) {
			t.Errorf("the port alone: %v", err)
		}
		veth(t, "172.31.0.14/20")
		check(t, netlink.LinkSetHardwareAddr(must(netlink.LinkByName("eth1")), mac))
		if d, err := n.find(); err != nil || d.name != "eth1" {
			t.Errorf("with one that has an address: %+v, %v", d, err)
		}
	})
}

// A connection that nothing acknowledges ends, as the address that it began with may be gone.
func TestControlDial(t *testing.T) {
	netnstest.Run(t, func() {
		veth(t, "172.31.0.14/20")
		n := must(New("eth1"))
		enough := errors.New("enough")
		d := net.Dialer{Control: func(network, _ string, c syscall.RawConn) error {
			check(t, n.controlDial(t.Context(), network, "172.31.0.1:80", c))
			check(t, onSocket(c, func(fd int) error {
				device, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
				check(t, err)
				timeout, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
				if device != "eth1" || timeout != 30_000 {
					t.Errorf("device %q, time-out %d ms", device, timeout)
				}
				return err
			}))
			return enough
		}}
		if _, err := d.DialContext(t.Context(), "tcp4", "127.0.0.1:1"); !errors.Is(err, enough) {
			t.Error(err)
		}
		if n.Dialer().MultipathTCP() {
			t.Error("the dialer may take further paths")
		}
	})
}

// A listener without a host goes on when the NIC gets another address.
func TestListenFollows(t *testing.T) {
	server, client := netnstest.New(t), netnstest.New(t)
	var l net.Listener
	server.Do(func() {
		veth(t, "172.31.0.14/20")
		check(t, netlink.LinkSetNsFd(must(netlink.LinkByName("bare")), client.FD()))
		var err error
		l, err = must(New("eth1")).Listen(t.Context(), "tcp", ":0")
		check(t, err)
	})
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	call := func(host string) {
		t.Helper()
		client.Do(func() {
			d := net.Dialer{Timeout: 10 * time.Second}
			c, err := d.DialContext(t.Context(), "tcp4", net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)))
			check(t, err)
			c.Close()
		})
	}
	client.Do(func() {
		bare := must(netlink.LinkByName("bare"))
		check(t, netlink.AddrAdd(bare, must(netlink.ParseAddr("172.31.0.1/20"))))
		check(t, netlink.LinkSetUp(bare))
	})
	call("172.31.0.14")
	server.Do(func() {
		eth1 := must(netlink.LinkByName("eth1"))
		check(t, netlink.AddrDel(eth1, must(netlink.ParseAddr("172.31.0.14/20"))))
		check(t, netlink.AddrAdd(eth1, must(netlink.ParseAddr("172.31.0.77/20"))))
	})
	call("172.31.0.77")
}

// Whom a listener answers to: the mark is of those.
func TestHeard(t *testing.T) {
	for _, tt := range []struct {
		network, at string
		want        []netip.Addr
	}{
		{"tcp6", "::", world}, // hears both families
		{"tcp6", "2001:db8::1", world[1:]},
		{"tcp4", "0.0.0.0", world[:1]},
		{"tcp4", "::", world[:1]}, // ":8090", as Control is told
		{"udp4", "172.31.0.14", world[:1]},
	} {
		if got := heard(tt.network, netip.MustParseAddr(tt.at)); !slices.Equal(got, tt.want) {
			t.Errorf("%s on %s: %v, want %v", tt.network, tt.at, got, tt.want)
		}
	}
}

// A name server on any of the host's addresses asks by the host's routing.
func TestOwnNameServer(t *testing.T) {
	if _, there := os.Stat(upstream); there == nil {
		t.Skip("this host has a systemd-resolved")
	}
	netnstest.Run(t, func() {
		veth(t, "172.31.0.14/20", "169.254.20.10/32")
		for _, server := range []string{"172.31.0.14:53", "169.254.20.10:53", "[::ffff:172.31.0.14]:53"} {
			if _, err := must(New("eth1")).dialServer(t.Context(), "udp", server); err == nil || !strings.Contains(err.Error(), "WithNameServers") {
				t.Errorf("asking %s: %v", server, err)
			}
		}
		path := filepath.Join(t.TempDir(), "resolv.conf")
		check(t, os.WriteFile(path, []byte("nameserver 172.31.0.14\nnameserver 172.31.0.2\n"), 0o600))
		if got := must(realServers(path)); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("172.31.0.2:53")}) {
			t.Errorf("servers that are not on this host: %v", got)
		}
	})
}

// veth makes eth1, with the addresses.
func veth(t *testing.T, addrs ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth1"
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "bare"}
	check(t, netlink.LinkAdd(pair))
	check(t, netlink.LinkSetUp(pair))
	check(t, netlink.LinkSetUp(must(netlink.LinkByName("bare"))))
	for _, a := range addrs {
		check(t, netlink.AddrAdd(pair, must(netlink.ParseAddr(a))))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
