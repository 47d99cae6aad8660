package snat

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// TestQuoted: an ICMP error about somebody else's connection does not leave, on
// watched and on locked bridges, with lock 1 and without it. One about the
// sender's own leaves by the NIC of its pin, or by the one that was called.
func TestQuoted(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.world, 80)
	serve(t, l.stock, 8080)
	serve(t, l.container, 8080)
	serve(t, l.host, 22)
	l.world.nft(t, `table inet errors {
	counter eth0 { }
	counter eth1 { }
	chain by { iifname "w0" counter name eth0; iifname "w1" counter name eth1; }
	chain pre { type filter hook prerouting priority -400;
		icmp type destination-unreachable jump by
		icmpv6 type destination-unreachable jump by
	}
}
`)
	for _, f := range model.Families {
		t.Run(f.String()+" own", func(t *testing.T) { l.quoteOwn(t, f) })
		t.Run(f.String()+" others'", func(t *testing.T) { l.quoteOthers(t, f, CounterPending, CounterRefused) })
	}
	l.unroute(t)
	for _, f := range model.Families {
		t.Run(f.String()+" others', without lock 1", func(t *testing.T) { l.quoteOthers(t, f, CounterForged, CounterForged) })
	}
}

func (l *lab) quoteOwn(t *testing.T, f model.Family) {
	t.Helper()
	w := worldAddr
	for _, c := range []struct {
		name          string
		from, to, nic string
		ns            *namespace // of the endpoint
		endpoint      string
		port          int // called; 0: it calls
	}{
		{"watched, pinned, calls", "172.20.0.2", w, "eth1", l.stock, "172.20.0.2", 0},
		{"watched, pinned, called by its NIC", w, "172.31.16.14", "eth1", l.stock, "172.20.0.2", 9002},
		{"watched, pinned, called by another NIC", w, "172.31.0.8", "eth0", l.stock, "172.20.0.2", 9002},
		{"locked, pinned, calls", "172.19.0.101", w, "eth1", l.container, "172.19.0.101", 0},
		{"locked, pinned, called by its NIC", w, "172.31.16.14", "eth1", l.container, "172.19.0.101", 8090},
		{"locked, pinned, called by another NIC", w, "172.31.16.14", "eth1", l.container, "172.19.0.100", 8091},
	} {
		from, to, endpoint, world := inFamily(f, c.from), inFamily(f, c.to), inFamily(f, c.endpoint), inFamily(f, w)
		about := quoted{remote: netip.AddrPortFrom(world, 80)}
		if c.port == 0 {
			about.local = connect(t, c.ns, from, netip.AddrPortFrom(to, 80))
		} else {
			about.local = netip.AddrPortFrom(endpoint, 8080)
			about.remote = connect(t, l.world, from, netip.AddrPortFrom(to, uint16(c.port)))
		}
		about.send(t, c.ns, endpoint)
		for giveUp := time.Now().Add(patience); ; <-time.After(silence / 10) {
			if counted(t, l.world, "errors", c.nic) > 0 {
				break
			}
			if time.Now().After(giveUp) {
				t.Errorf("%s: an error about its own connection did not leave by %s", c.name, c.nic)
				break
			}
		}
		if other := map[string]string{"eth0": "eth1", "eth1": "eth0"}[c.nic]; counted(t, l.world, "errors", other) > 0 {
			t.Errorf("%s: an error about its own connection left by %s", c.name, other)
		}
	}
	l.nothingForeign(t)
}

// quoteOthers quotes connections of .3, about which nobody said anything, and
// that Docker publishes; and a session of the host. locked and held are what
// counts the errors of containers on eip_bridge.
func (l *lab) quoteOthers(t *testing.T, f model.Family, locked, held string) {
	t.Helper()
	world, victim, primary := inFamily(f, worldAddr), inFamily(f, "172.20.0.3"), inFamily(f, "172.31.0.8")
	calls := quoted{connect(t, l.stock, victim, netip.AddrPortFrom(world, 80)), netip.AddrPortFrom(world, 80)}
	called := quoted{netip.AddrPortFrom(victim, 8080), connect(t, l.world, world, netip.AddrPortFrom(primary, 9003))}
	session := quoted{netip.AddrPortFrom(primary, 22), connect(t, l.world, world, netip.AddrPortFrom(primary, 22))}
	for _, c := range []struct {
		name            string
		ns              *namespace
		from            string
		original, reply string // what counts it, in either direction of the connection
	}{
		{"watched, pinned", l.stock, "172.20.0.2", CounterForged, CounterForged},
		{"watched, held", l.stock, "172.20.0.4", CounterRefused, CounterForged},
		{"locked, pinned", l.container, "172.19.0.101", locked, locked},
		{"locked, held", l.container, "172.19.0.103", held, held},
		{"locked, pending", l.container, "172.19.0.110", locked, locked},
	} {
		for about, name := range map[quoted]string{calls: c.original, called: c.reply, session: c.reply} {
			before := counter(t, l.m, name)
			about.send(t, c.ns, inFamily(f, c.from))
			if !moves(t, l.m, name, before) {
				t.Errorf("%s about %v and %v: counter %s did not move", c.name, about.local, about.remote, name)
			}
			for _, nic := range []string{"eth0", "eth1"} {
				if counted(t, l.world, "errors", nic) > 0 {
					t.Errorf("%s about %v and %v: it left by %s", c.name, about.local, about.remote, nic)
				}
			}
		}
	}
	l.nothingForeign(t)
}

// inFamily is an address that is said in IPv4.
func inFamily(f model.Family, s string) netip.Addr {
	if f == model.IPv6 {
		s = six(s)
	}
	return addr(s)
}

// connect opens a connection for the test's time and returns its near end.
func connect(t *testing.T, ns *namespace, from netip.Addr, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	var c net.Conn
	var err error
	ns.Do(func() {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: patience}
		c, err = d.DialContext(context.Background(), "tcp", to.String())
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// quoted is a TCP connection as it looks on a container's bridge.
type quoted struct{ local, remote netip.AddrPort }

// send tells the remote end, from any address of the namespace, that a segment
// of its was unreachable.
func (q quoted) send(t *testing.T, ns *namespace, from netip.Addr) {
	t.Helper()
	segment := slices.Concat(be(int(q.remote.Port())), be(int(q.local.Port())), make([]byte, 8), []byte{5 << 4, tcpACK}, make([]byte, 6))
	src, dst := q.remote.Addr().AsSlice(), q.local.Addr().AsSlice()
	network, kind := "ip4:icmp", []byte{3, 1, 0, 0, 0, 0, 0, 0}
	header := slices.Concat([]byte{4<<4 | 5, 0}, be(20+len(segment)), make([]byte, 4), []byte{64, unix.IPPROTO_TCP, 0, 0}, src, dst)
	if from.Is6() {
		network, kind = "ip6:ipv6-icmp", []byte{1, 3, 0, 0, 0, 0, 0, 0}
		header = slices.Concat([]byte{6 << 4, 0, 0, 0}, be(len(segment)), []byte{unix.IPPROTO_TCP, 64}, src, dst)
	}
	payload := slices.Concat(kind, header, segment, []byte("chosen by the container"))
	if from.Is4() { // in IPv6 the kernel sums up
		copy(payload[2:], checksum(payload, 0))
	}
	ns.Do(func() {
		c, err := net.ListenPacket(network, from.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteTo(payload, &net.IPAddr{IP: src}); err != nil {
			t.Fatal(err)
		}
	})
}
