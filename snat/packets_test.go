package snat

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

func TestPackets(t *testing.T) {
	for _, bridgeNF := range []bool{true, false} {
		t.Run(fmt.Sprintf("br_netfilter %v", bridgeNF), func(t *testing.T) { testPackets(t, newLab(t, bridgeNF), bridgeNF) })
	}
}

func testPackets(t *testing.T, l *lab, bridgeNF bool) {
	t.Helper()
	serve(t, l.world, 80)
	serve(t, l.container, 8080)
	serve(t, l.stock, 8080)
	serve(t, l.host, 22)
	serveAt(t, l.host, "127.0.0.1:8094")
	serveAt(t, l.host, "[::1]:8094")
	serve(t, l.sibling, 8080)

	t.Run("foreign packets are seen", func(t *testing.T) { // the check is no check unless it can fail
		l.host.run(t, "ip addr add 192.0.2.77/32 dev lo")
		if !planted(t, l.world, "fabric", "foreign", func() { _, _ = ask(t, l.host, "192.0.2.77", worldAddr+":80", silence) }) {
			t.Fatal("a planted packet was not counted")
		}
		l.host.run(t, "ip addr del 192.0.2.77/32 dev lo")
	})

	tests := slices.Concat(l.outward(), l.inward(), l.inside(), l.watched())
	if bridgeNF {
		tests = slices.DeleteFunc(tests, func(c call) bool { return !c.bridged })
	}
	l.calls(t, tests)
	if !bridgeNF {
		t.Run("no connection", l.noConnection)
	}
}

// outward is what containers and the host ask of the world.
func (l *lab) outward() []call {
	c, w := l.container, worldAddr
	return []call{
		{name: "pinned to the primary", ns: c, from: "172.19.0.100", to: w, port: 80, seen: "172.31.0.8", bridged: true},
		{name: "pinned to the second NIC", ns: c, from: "172.19.0.101", to: w, port: 80, seen: "172.31.16.14", bridged: true},
		{name: "pinned to the second NIC's second address", ns: c, from: "172.19.0.104", to: w, port: 80, seen: "172.31.16.15", bridged: true},
		{name: "known as unpinned", ns: c, from: "172.19.0.102", to: w, port: 80, seen: "172.31.0.8", bridged: true},
		{name: "held is refused", ns: c, from: "172.19.0.103", to: w, port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused, bridged: true},
		{name: "pending is silent", ns: c, from: "172.19.0.110", to: w, port: 80, err: errTimeout, counter: CounterPending, bridged: true},

		{name: "pinned to an excepted destination", ns: c, from: "172.19.0.101", to: "198.51.100.1", port: 80, seen: "172.31.0.8"},
		{name: "held to an excepted destination", ns: c, from: "172.19.0.103", to: "198.51.100.1", port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused},
		{name: "pending to an excepted destination", ns: c, from: "172.19.0.110", to: "198.51.100.1", port: 80, err: errTimeout, counter: CounterPending},
		{name: "nobody's address to an excepted destination", ns: c, from: "10.66.0.1", to: "198.51.100.1", port: 80, err: errTimeout, counter: CounterForged},
		{name: "excepted for this source", ns: c, from: "172.19.0.101", to: "198.51.100.2", port: 80, seen: "172.31.0.8"},
		{name: "excepted for another source", ns: c, from: "172.19.0.104", to: "198.51.100.2", port: 80, seen: "172.31.16.15"},
		{name: "held to what others are excepted from", ns: c, from: "172.19.0.103", to: "198.51.100.2", port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused},

		{name: "host to the world", ns: l.host, to: w, port: 80, seen: "172.31.0.8"},
		{name: "host to the world from the second NIC's address", ns: l.host, from: "172.31.16.14", to: w, port: 80, seen: "172.31.16.14"},
	}
}

// inward is what others ask of containers and the host.
func (l *lab) inward() []call {
	w := worldAddr
	return []call{
		{name: "published on the primary", ns: l.world, from: w, to: "172.31.0.8", port: 8090, seen: w, bridged: true},
		{name: "published on the second NIC", ns: l.world, from: w, to: "172.31.16.14", port: 8090, seen: w, bridged: true},
		{name: "answered by the NIC that was asked, not by the pin's", ns: l.world, from: w, to: "172.31.16.14", port: 8091, seen: w, bridged: true},
		{name: "answered by the NIC that was asked, not by the host's route", ns: l.world, from: "203.0.113.2", to: "172.31.16.14", port: 8090, seen: "203.0.113.2"},
		{name: "a held container does not answer", ns: l.world, from: w, to: "172.31.0.8", port: 8093, err: errTimeout, counter: CounterRefused},
		{name: "published on all addresses", ns: l.world, from: w, to: "172.31.16.14", port: 8092, seen: w},
		{name: "host service on the second NIC", ns: l.world, from: w, to: "172.31.16.14", port: 22, seen: w},
		{name: "host service answers by the NIC that was asked, not by the host's route", ns: l.world, from: "203.0.113.2", to: "172.31.16.14", port: 22, seen: "203.0.113.2"},

		{name: "not published", ns: l.world, from: w, to: "172.19.0.100", port: 8080, err: errTimeout, counter: CounterIsolated},
		{name: "from NIC to NIC", ns: l.world, from: w, to: "198.51.100.77", port: 80, err: errTimeout, counter: CounterIsolated},
		{name: "from the VPN to a NIC", ns: l.leg, from: "10.8.0.2", to: w, port: 80, err: errTimeout, counter: CounterIsolated},
		{name: "from a bridge that we do not know to a NIC", ns: l.guest, from: "192.168.122.2", to: w, port: 80, err: errTimeout, counter: CounterIsolated},
		{name: "from a bridge that we do not know to the VPN", ns: l.guest, from: "192.168.122.2", to: "203.0.113.2", port: 80, err: errTimeout, counter: CounterIsolated},

		{name: "by the VPN to its own address", ns: l.leg, from: "10.8.0.2", to: "10.8.0.1", port: 8092, seen: "10.8.0.2"},
		{name: "by the VPN to a NIC's address", ns: l.leg, from: "10.8.0.2", to: "172.31.0.8", port: 8090, seen: "10.8.0.2"},
		{name: "by a bridge that we do not know to a NIC's address", ns: l.guest, from: "192.168.122.2", to: "172.31.0.8", port: 8090, seen: "192.168.122.2"},
		{name: "by the VPN, answered by a managed NIC", ns: l.leg, from: "203.0.113.5", to: "10.8.0.1", port: 8092, err: errTimeout, counter: CounterGuardReply},
	}
}

// inside is what stays on the host.
func (l *lab) inside() []call {
	c := l.container
	return []call{
		{name: "a sibling", ns: c, from: "172.19.0.100", to: "172.19.0.120", port: 8080, seen: "172.19.0.100", bridged: true},
		{name: "own published port", ns: c, from: "172.19.0.100", to: "172.31.0.8", port: 8090, seen: "172.19.0.1", bridged: true},
		{name: "a sibling's published port", ns: c, from: "172.19.0.100", to: "172.31.16.14", port: 8090, seen: "172.19.0.1", bridged: true},
		{name: "a held container calls a published port", ns: c, from: "172.19.0.103", to: "172.31.16.14", port: 8090, seen: "172.19.0.1", bridged: true},
		{name: "host to a published port", ns: l.host, to: "172.31.16.14", port: 8090, seen: "172.31.16.14"},
		{name: "host to one published on all addresses", ns: l.host, to: "172.31.0.8", port: 8092, seen: "172.31.0.8"},
		{name: "host to its loopback", ns: l.host, to: "127.0.0.1", port: 8094, seen: "127.0.0.1"},
		{name: "host to a container", ns: l.host, to: "172.19.0.100", port: 8080, seen: "172.19.0.1"},

		{name: "ours to Docker's bridge", ns: c, from: "172.19.0.100", to: "172.20.0.3", port: 8080, err: errTimeout, counter: CounterIsolated},
		{name: "Docker's bridge to ours", ns: l.stock, from: "172.20.0.3", to: "172.19.0.100", port: 8080, err: errTimeout, counter: CounterIsolated},
		{name: "ours to a published port of Docker's bridge", ns: c, from: "172.19.0.101", to: "172.31.0.8", port: 9003, seen: "172.19.0.101"},
		{name: "Docker's bridge to a published port of ours", ns: l.stock, from: "172.20.0.3", to: "172.31.16.14", port: 8090, seen: "172.19.0.1"},
	}
}

// watched is a bridge of Docker's.
func (l *lab) watched() []call {
	s, w := l.stock, worldAddr
	return []call{
		{name: "watched, pinned", ns: s, from: "172.20.0.2", to: w, port: 80, seen: "172.31.16.14", bridged: true},
		{name: "watched, pinned, to an excepted destination", ns: s, from: "172.20.0.2", to: "198.51.100.1", port: 80, seen: "172.31.0.8"},
		{name: "watched, nobody said anything", ns: s, from: "172.20.0.3", to: w, port: 80, seen: "172.31.0.8", bridged: true},
		{name: "watched, held", ns: s, from: "172.20.0.4", to: w, port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused, bridged: true},
		{name: "watched, held, calls a published port of ours", ns: s, from: "172.20.0.4", to: "172.31.0.8", port: 8090, seen: "172.19.0.1"},
		{name: "watched, called by another NIC than the pin's", ns: l.world, from: w, to: "172.31.0.8", port: 9002, seen: w},
		{name: "watched, called by the pin's NIC", ns: l.world, from: w, to: "172.31.16.14", port: 9002, seen: w, bridged: true},
		{name: "watched, held, called by the second NIC", ns: l.world, from: w, to: "172.31.16.14", port: 9004, err: errTimeout, counter: CounterGuardHeld},
		{name: "watched, called by the VPN", ns: l.leg, from: "10.8.0.2", to: "172.31.0.8", port: 9002, seen: "10.8.0.2"},
		{name: "watched, nobody said anything, called", ns: l.world, from: w, to: "172.31.0.8", port: 9003, seen: w},
	}
}

// TestNeighbourUntouched: on a watched bridge a container about which nobody
// said anything gets no mark, and its masquerade from Docker. The guard judges
// neither it nor the host.
func TestNeighbourUntouched(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.host, 22)
	serve(t, l.world, 80)
	serve(t, l.stock, 8080)
	l.calls(t, []call{
		{name: "out", ns: l.stock, from: "172.20.0.3", to: worldAddr, port: 80, seen: "172.31.0.8"},
		{name: "in", ns: l.world, from: worldAddr, to: "172.31.0.8", port: 9003, seen: worldAddr},
		{name: "in by the VPN, to its own address", ns: l.leg, from: "10.8.0.2", to: "172.20.0.3", port: 8080, seen: "10.8.0.2"},
		{name: "to an excepted destination", ns: l.stock, from: "172.20.0.3", to: "198.51.100.1", port: 80, seen: "172.31.0.8"},
	})
	if n := counted(t, l.host, "docker", "touched"); n != 0 {
		t.Errorf("%d packets bore a mark", n)
	}
	if n := counted(t, l.host, "docker", "masqueraded"); n != 4 {
		t.Errorf("Docker masqueraded %d connections of 4", n)
	}
	// Where Docker's own routing goes wrong, and where conntrack knows of no
	// connection, that is as it would be without us.
	if !planted(t, l.world, "fabric", "foreign", func() { _, _ = ask(t, l.world, worldAddr, "172.31.16.14:9003", silence) }) {
		t.Error("an answer by the wrong NIC was stopped")
	}
	if !planted(t, l.world, "fabric", "foreign", func() { segment(t, l.stock, "172.20.0.3", worldAddr, 80, tcpRST) }) {
		t.Error("a segment of no connection was stopped")
	}
	if !planted(t, l.world, "fabric", "foreign", func() { _, _ = ask(t, l.world, worldAddr, "10.8.0.1:22", silence) }) { // comes by eth1
		t.Error("the host's own answer was stopped")
	}
	// The check can fail.
	l.fw.Own = append(l.fw.Own, prefixes("172.20.0.3/32")...)
	apply(t, l.m, l.fw, true, true)
	if !planted(t, l.host, "docker", "touched", func() { _, _ = ask(t, l.world, worldAddr, "172.31.0.8:9003", silence) }) {
		t.Error("a mark was not seen")
	}
}

// TCP flags.
const (
	tcpFIN = 1
	tcpSYN = 2
	tcpRST = 4
	tcpACK = 16
)

// noConnection sends segments that belong to no connection, which NAT passes over.
func (l *lab) noConnection(t *testing.T) {
	l.host.run(t, "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0")
	l.host.nft(t, "table inet probe { chain pre { type filter hook prerouting priority -400; tcp dport 81 notrack; }; }")
	for _, from := range []string{"172.19.0.100", "172.19.0.101", "172.19.0.102", "172.20.0.2", "172.20.0.4"} {
		ns := l.container
		if strings.HasPrefix(from, "172.20.") {
			ns = l.stock
		}
		for _, f := range model.Families {
			from, to := from, worldAddr
			if f == model.IPv6 {
				from, to = six(from), six(to)
			}
			for name, s := range map[string]struct {
				port  int
				flags byte
			}{"FIN": {80, tcpFIN | tcpACK}, "RST": {80, tcpRST}, "ACK": {80, tcpACK}, "untracked": {81, tcpSYN}} {
				before := counter(t, l.m, CounterGuardInvalid)
				segment(t, ns, from, to, s.port, s.flags)
				if !moves(t, l.m, CounterGuardInvalid, before) {
					t.Errorf("%s from %s was not stopped", name, from)
				}
			}
		}
	}
	l.nothingForeign(t)
}

// segment sends one bare TCP segment.
func segment(t *testing.T, ns *namespace, from, to string, port int, flags byte) {
	t.Helper()
	src, dst := addr(from), addr(to)
	tcp := slices.Concat(be(4321), be(port), []byte{0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags}, be(1024), be(0), be(0))
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), tcp)
	copy(tcp[16:], checksum(pseudo, uint32(len(tcp))+unix.IPPROTO_TCP))
	network := "ip4:tcp"
	if src.Is6() {
		network = "ip6:tcp"
	}
	ns.Do(func() {
		c, err := net.ListenPacket(network, from)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteTo(tcp, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestGuardAlone takes away everything but the table: no marks' rules, no lock 1.
func TestGuardAlone(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.world, 80)
	serve(t, l.container, 8080)
	serve(t, l.stock, 8080)
	l.unroute(t)
	c, s, w := l.container, l.stock, worldAddr
	l.calls(t, []call{
		{name: "the primary goes on", ns: c, from: "172.19.0.100", to: w, port: 80, seen: "172.31.0.8"},
		{name: "known as unpinned", ns: c, from: "172.19.0.102", to: w, port: 80, seen: "172.31.0.8"},
		{name: "pinned to the second NIC", ns: c, from: "172.19.0.101", to: w, port: 80, err: errTimeout, counter: CounterGuardPinned},
		{name: "held", ns: c, from: "172.19.0.103", to: w, port: 80, err: errTimeout, counter: CounterGuardHeld},
		{name: "pending", ns: c, from: "172.19.0.110", to: w, port: 80, err: errTimeout, counter: CounterGuardHeld},
		{name: "watched, pinned to the second NIC", ns: s, from: "172.20.0.2", to: w, port: 80, err: errTimeout, counter: CounterGuardPinned},
		{name: "pinned to an excepted destination", ns: c, from: "172.19.0.101", to: "198.51.100.1", port: 80, seen: "172.31.0.8"},
		{name: "held to an excepted destination", ns: c, from: "172.19.0.103", to: "198.51.100.1", port: 80, err: errTimeout, counter: CounterGuardHeld},
		{name: "excepted for this source", ns: c, from: "172.19.0.101", to: "198.51.100.2", port: 80, seen: "172.31.0.8"},
		{name: "excepted for another source", ns: c, from: "172.19.0.104", to: "198.51.100.2", port: 80, err: errTimeout, counter: CounterGuardPinned},

		{name: "answers of the primary go on", ns: l.world, from: w, to: "172.31.0.8", port: 8090, seen: w},
		{name: "answers of the second NIC by the primary", ns: l.world, from: w, to: "172.31.16.14", port: 8090, err: errTimeout, counter: CounterGuardReply},
		{name: "answers of the second NIC by the VPN", ns: l.world, from: "203.0.113.2", to: "172.31.16.14", port: 8090, err: errTimeout, counter: CounterGuardReply},
		{name: "answers of the second NIC by a bridge that we do not know", ns: l.world, from: "203.0.113.3", to: "172.31.16.14", port: 8090, err: errTimeout, counter: CounterGuardReply},
		{name: "watched, answers of the second NIC", ns: l.world, from: w, to: "172.31.16.14", port: 9002, err: errTimeout, counter: CounterGuardReply},
		{name: "watched, held, answers of the second NIC by the VPN", ns: l.world, from: "203.0.113.2", to: "172.31.16.14", port: 9004, err: errTimeout, counter: CounterGuardHeld},
		{name: "by the VPN to a NIC's address", ns: l.leg, from: "10.8.0.2", to: "172.31.0.8", port: 8090, seen: "10.8.0.2"},
		{name: "by a bridge that we do not know to a NIC's address", ns: l.guest, from: "192.168.122.2", to: "172.31.0.8", port: 8090, seen: "192.168.122.2"},
		{name: "by the VPN, answered by a managed NIC", ns: l.leg, from: "203.0.113.5", to: "10.8.0.1", port: 8092, err: errTimeout, counter: CounterGuardReply},
	})
}
