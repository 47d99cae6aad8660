package snat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// The second NIC's MTU, which the world does not know of; that of a link behind
// the world; and that of the containers' bridge, in the last test.
const nicMTU, farMTU, bridgeMTU = 1400, 1340, 1300

// TestSegmentSize: whoever opens a connection by a NIC whose MTU is smaller than
// the others', who is outside sends no segments that the NIC would not take. By
// the others they stay as large as they were.
func TestSegmentSize(t *testing.T) {
	l := newLab(t, false)
	l.host.run(t, fmt.Sprintf("ip link set eth1 mtu %d", nicMTU))
	for _, c := range []struct {
		name     string
		client   *namespace
		from, to string
		server   *namespace
		port, at int // called, and listened at
		mtu      int
	}{
		{"out by the small NIC", l.container, "172.19.0.101", worldAddr, l.world, 80, 80, nicMTU},
		{"out by the other NIC", l.container, "172.19.0.100", worldAddr, l.world, 80, 80, 1500},
		{"in by the small NIC", l.world, worldAddr, "172.31.16.14", l.container, 8090, 8080, nicMTU},
		{"in by the other NIC", l.world, worldAddr, "172.31.0.8", l.container, 8090, 8080, 1500},
		{"a stock network, pinned to the small NIC", l.stock, "172.20.0.2", worldAddr, l.world, 80, 80, nicMTU},
	} {
		for _, f := range model.Families {
			from, to, headers := c.from, c.to, 20+20
			if f == model.IPv6 {
				from, to, headers = six(from), six(to), 40+20
			}
			t.Run(f.String()+" "+c.name, func(t *testing.T) {
				outside, server := segments(t, c.client, net.JoinHostPort(from, "0"), net.JoinHostPort(to, strconv.Itoa(c.port)), c.server, c.at)
				if c.server == l.world {
					outside = server
				}
				const timestamps = 12
				if want := c.mtu - headers - timestamps; outside != want {
					t.Errorf("segments of %d bytes, want %d", outside, want)
				}
			})
		}
	}
	l.nothingForeign(t)
}

// segments connects and returns how large a segment each end would send.
func segments(t *testing.T, client *namespace, from, to string, server *namespace, port int) (fromClient, fromServer int) {
	t.Helper()
	var listener net.Listener
	var err error
	server.Do(func() { listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	local, err := net.ResolveTCPAddr("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	client.Do(func() {
		d := net.Dialer{LocalAddr: local, Timeout: patience}
		c, err = d.DialContext(t.Context(), "tcp", to)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return option(t, c, unix.IPPROTO_TCP, unix.TCP_MAXSEG), option(t, s, unix.IPPROTO_TCP, unix.TCP_MAXSEG)
}

// option reads a socket option of a connection.
func option(t *testing.T, c any, level, name int) (value int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) { value, optErr = unix.GetsockoptInt(int(fd), level, name) }); err != nil || optErr != nil {
		t.Fatal(err, optErr)
	}
	return value
}

// TestPathMTU: errors that say how large a packet may be reach a pinned
// container from far away, and reach who called it from the host, by the NIC
// that was called.
func TestPathMTU(t *testing.T) {
	l := newLab(t, false)
	far := newNamespace(t)
	l.world.run(t, "ip link add x0 type veth peer name y0", "ip link set x0 up mtu "+strconv.Itoa(farMTU), "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
		fmt.Sprintf("ip link set y0 netns /proc/%d/fd/%d", unix.Getpid(), far.FD()))
	far.run(t, "ip link set lo up", fmt.Sprintf("ip link set y0 up mtu %d", farMTU), "sysctl -qw net.ipv6.conf.all.accept_dad=0")
	l.world.ip(t, "addr add 192.168.122.77/24 dev x0", "route add 203.0.113.9/32 via 192.168.122.78")
	far.ip(t, "addr add 192.168.122.78/24 dev y0", "addr add 203.0.113.9/32 dev lo", "route add default via 192.168.122.77")
	l.host.run(t, fmt.Sprintf("ip link set eip_bridge mtu %d", bridgeMTU), fmt.Sprintf("ip link set eth1 mtu %d", nicMTU))
	for _, as := range []func(string) string{func(s string) string { return s }, six} {
		l.fw.Forwards = append(l.fw.Forwards, plan.Forward{Proto: model.UDP, Addr: addr(as("172.31.16.14")), Port: 8090, To: netip.AddrPortFrom(addr(as("172.19.0.101")), 8080)},
			plan.Forward{Proto: model.UDP, Addr: addr(as("172.31.0.8")), Port: 8090, To: netip.AddrPortFrom(addr(as("172.19.0.100")), 8080)})
	}
	apply(t, l.m, l.fw, true, true)
	for _, c := range []struct {
		name     string
		ns       *namespace
		from, to string
		most     int // as large as the first packet
		mtu      int
	}{
		{"from far away to a container of the second NIC", l.container, "172.19.0.101", "203.0.113.9", nicMTU, farMTU},
		{"from far away to a container of the primary", l.container, "172.19.0.100", "203.0.113.9", nicMTU, farMTU},
		{"from the host to a container of the second NIC", l.container, "172.19.0.101", worldAddr, 1500, nicMTU},
		{"from the host to who called by the second NIC", l.world, worldAddr, "172.31.16.14", nicMTU, bridgeMTU},
		{"from the host to who called by the primary", l.world, worldAddr, "172.31.0.8", nicMTU, bridgeMTU},
	} {
		for _, f := range model.Families {
			from, to := c.from, c.to
			if f == model.IPv6 {
				from, to = six(from), six(to)
			}
			t.Run(f.String()+" "+c.name, func(t *testing.T) {
				c.ns.run(t, "ip route flush cache", "ip -6 route flush cache")
				if got := learned(t, c.ns, &net.UDPAddr{IP: net.ParseIP(from)}, net.JoinHostPort(to, "8090"), f, c.most, c.mtu); got != c.mtu {
					t.Errorf("learned an MTU of %d, want %d", got, c.mtu)
				}
			})
		}
	}
	// Who answers what a container asked learns it from the host, too.
	for _, c := range []struct {
		name, from, to string
	}{
		{"to whom a container of the second NIC asked", "172.19.0.101", worldAddr},
		{"to whom a container of the second NIC's second address asked", "172.19.0.104", worldAddr},
		{"to whom a container of the primary asked", "172.19.0.100", worldAddr},
		{"to whom an unpinned container asked", "172.19.0.102", worldAddr},
		{"to an excepted destination", "172.19.0.101", "198.51.100.1"},
		{"to a destination excepted for the container", "172.19.0.101", "198.51.100.2"},
	} {
		for _, f := range model.Families {
			from, to := c.from, c.to
			if f == model.IPv6 {
				from, to = six(from), six(to)
			}
			t.Run(f.String()+" "+c.name, func(t *testing.T) {
				l.world.run(t, "ip route flush cache", "ip -6 route flush cache")
				server, client := asked(t, l.container, from, l.world, net.JoinHostPort(to, "8095"))
				if got := learned(t, l.world, server, client, f, nicMTU, bridgeMTU); got != bridgeMTU {
					t.Errorf("learned an MTU of %d, want %d", got, bridgeMTU)
				}
			})
		}
	}
	l.nothingForeign(t)
}

// asked sends a datagram from a container, and returns the addresses of both as the server sees them.
func asked(t *testing.T, ns *namespace, from string, server *namespace, at string) (*net.UDPAddr, string) {
	t.Helper()
	var there net.PacketConn
	var err error
	server.Do(func() { there, err = net.ListenPacket("udp", at) })
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	var here net.Conn
	ns.Do(func() {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		if here, err = d.DialContext(t.Context(), "udp", at); err == nil {
			_, err = here.Write([]byte("hello"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	if err := there.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, client, err := there.ReadFrom(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	return there.LocalAddr().(*net.UDPAddr), client.String()
}

// learned sends datagrams that must not be fragmented until the path's MTU is
// known to be this one, and returns what is known of it in the end.
func learned(t *testing.T, ns *namespace, from *net.UDPAddr, to string, f model.Family, most, want int) (mtu int) {
	t.Helper()
	level, discover, known, do, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU, unix.IP_PMTUDISC_DO, 20+8
	if f == model.IPv6 {
		level, discover, known, do, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU, unix.IPV6_PMTUDISC_DO, 40+8
	}
	d := net.Dialer{LocalAddr: from, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discover, do) }), err)
	}}
	var c net.Conn
	var err error
	ns.Do(func() { c, err = d.DialContext(t.Context(), "udp", to) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The connection is known from its first packet, which has to get through: one
	// that is too large itself is answered before it is known by which NIC it came.
	_, _ = c.Write([]byte("hello"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if mtu = option(t, c, level, known); mtu == want {
			return mtu
		}
		_, _ = c.Write(make([]byte, min(mtu, most)-headers)) // is refused where less is known since
		select {
		case <-ctx.Done():
			return mtu
		case <-tick.C:
		}
	}
}
