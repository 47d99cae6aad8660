package snat

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// local gives the host two addresses for its own programs, 172.18.0.100 on eth0
// and .101 on eth1, a third one that is known as unpinned, and one that is held.
func (l *lab) local(t *testing.T) {
	t.Helper()
	l.host.run(t, "ip link add br-eip1 type bridge", "ip link set br-eip1 up")
	l.world.run(t, "ip route add 172.18.0.0/16 via 172.31.0.8")
	pin := func(a string, id model.NICID, nic, as string) plan.Source {
		return plan.Source{Addr: addr(a), NIC: id, NICName: nic, Address: addr(as)}
	}
	l.fw.Inside = append(l.fw.Inside, "lo")
	l.fw.Sources = append(l.fw.Sources, pin("172.18.0.100", 1, "eth0", "172.31.0.8"), pin("172.18.0.101", 2, "eth1", "172.31.16.14"),
		plan.Source{Addr: addr("172.18.0.102"), Verdict: plan.ViaHost}, plan.Source{Addr: addr("172.18.0.103"), Verdict: plan.Blocked})
	for _, a := range []string{"172.18.0.100", "172.18.0.101", "172.18.0.102", "172.18.0.103"} {
		l.host.run(t, "ip addr add "+a+"/32 dev br-eip1",
			"ip rule add pref 5100 from "+a+" iif lo lookup 8100", "ip rule add pref 5190 from "+a+" iif lo lookup 8199")
		l.fw.Local = append(l.fw.Local, addr(a))
		l.fw.Own = append(l.fw.Own, prefixes(a+"/32")...)
		l.fw.Masqueraded = append(l.fw.Masqueraded, prefixes(a+"/32")...)
	}
	publish := func(host string, port uint16, to string) {
		l.fw.Forwards = append(l.fw.Forwards, plan.Forward{Proto: model.TCP, Addr: addr(host), Port: port, To: addrPort(to)})
	}
	publish("172.31.0.8", 8190, "172.18.0.100:8080")
	publish("172.31.16.14", 8190, "172.18.0.101:8080")
	publish("172.31.16.14", 8191, "172.18.0.100:8080")
	publish("172.31.16.14", 8193, "172.18.0.103:8080")
	apply(t, l.m, l.fw, true, true)
}

// TestLocal: an address of the host's own leads its programs to its NIC, and
// nothing else of the host is touched.
func TestLocal(t *testing.T) {
	l := newLab(t, false)
	l.local(t)
	l.host.nft(t, `table inet see {
	counter touched { }
	chain out { type filter hook output priority 0;
		ip saddr { 172.31.0.8, 172.31.16.14 } meta mark & 0xff000000 != 0 ct direction original counter name touched
		ip saddr 172.31.0.8 meta mark & 0xff000000 != 0 counter name touched
	}
	chain in { type filter hook input priority 0;
		iifname "eth0" ip daddr 172.31.0.8 ct mark & 0xff000000 != 0 counter name touched
	}
}
`)
	serve(t, l.world, 80)
	serve(t, l.container, 8080)
	serve(t, l.host, 22)
	serveAt(t, l.host, "127.0.0.1:8094")
	for _, a := range []string{"172.18.0.100", "172.18.0.101", "172.18.0.103"} {
		serveAt(t, l.host, a+":8080")
	}
	w, h := worldAddr, l.host
	everything := []call{
		{name: "pinned to the primary", ns: h, from: "172.18.0.100", to: w, port: 80, seen: "172.31.0.8"},
		{name: "pinned to the second NIC", ns: h, from: "172.18.0.101", to: w, port: 80, seen: "172.31.16.14"},
		{name: "pinned to the second NIC, by a host's route elsewhere", ns: h, from: "172.18.0.101", to: "203.0.113.2", port: 80, seen: "172.31.16.14"},
		{name: "known as unpinned", ns: h, from: "172.18.0.102", to: w, port: 80, seen: "172.31.0.8"},
		{name: "held is refused", ns: h, from: "172.18.0.103", to: w, port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused},
		{name: "to an excepted destination", ns: h, from: "172.18.0.101", to: "198.51.100.1", port: 80, seen: "172.31.0.8"},
		{name: "held to an excepted destination", ns: h, from: "172.18.0.103", to: "198.51.100.1", port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused},
		{name: "without an address of its own", ns: h, to: w, port: 80, seen: "172.31.0.8"},

		{name: "published on the primary", ns: l.world, from: w, to: "172.31.0.8", port: 8190, seen: w},
		{name: "published on the second NIC", ns: l.world, from: w, to: "172.31.16.14", port: 8190, seen: w},
		{name: "answered by the NIC that was asked, not by the pin's", ns: l.world, from: w, to: "172.31.16.14", port: 8191, seen: w},
		{name: "answered by the NIC that was asked, not by the host's route", ns: l.world, from: "203.0.113.2", to: "172.31.16.14", port: 8190, seen: "203.0.113.2"},
		{name: "held does not answer", ns: l.world, from: w, to: "172.31.16.14", port: 8193, err: errTimeout, counter: CounterRefused},
		{name: "by the VPN", ns: l.leg, from: "10.8.0.2", to: "172.31.0.8", port: 8190, seen: "10.8.0.2"},
		{name: "not published", ns: l.world, from: w, to: "172.18.0.100", port: 8080, err: errTimeout, counter: CounterIsolated},
		{name: "host service on the primary", ns: l.world, from: w, to: "172.31.0.8", port: 22, seen: w},
		{name: "host service on the second NIC", ns: l.world, from: w, to: "172.31.16.14", port: 22, seen: w},

		{name: "host to a published port", ns: h, to: "172.31.16.14", port: 8190, seen: "172.31.16.14"},
		{name: "host to the address", ns: h, to: "172.18.0.101", port: 8080, seen: "172.18.0.101"},
		{name: "one to the other", ns: h, from: "172.18.0.100", to: "172.18.0.101", port: 8080, seen: "172.18.0.100"},
		{name: "one to the other's published port", ns: h, from: "172.18.0.100", to: "172.31.16.14", port: 8190, seen: "172.18.0.100"},
		{name: "to the loopback", ns: h, from: "172.18.0.101", to: "127.0.0.1", port: 8094, seen: "172.18.0.101"},
		{name: "held to a sibling", ns: h, from: "172.18.0.103", to: "172.18.0.101", port: 8080, seen: "172.18.0.103"},
		{name: "to a container", ns: h, from: "172.18.0.101", to: "172.19.0.100", port: 8080, seen: "172.18.0.101"},
		{name: "to a container's published port", ns: h, from: "172.18.0.101", to: "172.31.0.8", port: 8090, seen: "172.18.0.101"},
		{name: "a container to a published port", ns: l.container, from: "172.19.0.101", to: "172.31.16.14", port: 8190, seen: "172.19.0.101"},
	}
	for _, rp := range []string{"0", "2"} {
		l.host.run(t, "sysctl -qw net.ipv4.conf.all.rp_filter="+rp)
		for _, c := range everything {
			t.Run(c.name+", rp_filter "+rp, func(t *testing.T) { l.call4(t, c) })
		}
	}
	if n := counted(t, l.host, "see", "touched"); n != 0 {
		t.Errorf("%d packets of the host's other sockets bore a mark", n)
	}

	// A container that takes the address as its own: the kernel knows better.
	l.container.run(t, "ip addr add 172.18.0.101/32 dev c0")
	t.Run("forged by a container", func(t *testing.T) {
		l.call4(t, call{ns: l.container, from: "172.18.0.101", to: w, port: 80, err: errTimeout})
	})
	l.host.run(t, "ip addr del 172.18.0.100/32 dev br-eip1")
	t.Run("the address is gone", func(t *testing.T) {
		l.call4(t, call{ns: l.world, from: w, to: "172.31.0.8", port: 8190, err: errTimeout, counter: CounterIsolated})
	})
	l.host.run(t, "ip addr add 172.18.0.100/32 dev br-eip1")

	t.Run("lock 2 alone", func(t *testing.T) {
		for range 4 {
			l.host.run(t, "ip rule del pref 5100 iif lo", "ip rule del pref 5190 iif lo")
		}
		l.unroute(t)
		l.call4(t, call{ns: h, from: "172.18.0.100", to: w, port: 80, seen: "172.31.0.8"})
		l.call4(t, call{ns: h, from: "172.18.0.101", to: w, port: 80, err: errTimeout, counter: CounterGuardPinned})
		l.call4(t, call{ns: h, from: "172.18.0.103", to: w, port: 80, err: errTimeout, counter: CounterGuardHeld})
		l.call4(t, call{ns: l.world, from: w, to: "172.31.16.14", port: 8190, err: errTimeout, counter: CounterGuardReply})
	})
}

// call4 makes one connection in IPv4.
func (l *lab) call4(t *testing.T, c call) {
	t.Helper()
	before := uint64(0)
	if c.counter != "" {
		before = counter(t, l.m, c.counter)
	}
	timeout := patience
	if errors.Is(c.err, errTimeout) {
		timeout = silence
	}
	seen, err := ask(t, c.ns, c.from, net.JoinHostPort(c.to, strconv.Itoa(c.port)), timeout)
	if seen != c.seen || !errors.Is(err, c.err) {
		t.Errorf("seen as %q, error %v; want %q, %v", seen, err, c.seen, c.err)
	}
	if c.counter != "" && !moves(t, l.m, c.counter, before) {
		t.Errorf("counter %s did not move", c.counter)
	}
	l.nothingForeign(t)
}
