package snat

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestAddressOfAnotherNIC: a connection keeps the address that it began with.
// When its way is another one, and nobody has forgotten it yet, it does not go
// on by a NIC that does not have that address.
func TestAddressOfAnotherNIC(t *testing.T) {
	l := newLab(t, false)
	for _, f := range model.Families {
		as := func(s string) string {
			if f == model.IPv6 {
				return six(s)
			}
			return s
		}
		world := netip.PrefixFrom(addr(as(worldAddr)), addr(as(worldAddr)).BitLen())
		for _, c := range []struct {
			name, from string
			change     func(*plan.Firewall)
		}{
			{"excepted for its source", "172.19.0.101", func(fw *plan.Firewall) {
				fw.ExceptBy = append(slices.Clone(fw.ExceptBy), plan.Exception{Source: addr(as("172.19.0.101")), To: world})
			}},
			{"excepted for all", "172.19.0.101", func(fw *plan.Firewall) { fw.Except = append(slices.Clone(fw.Except), world) }},
			{"not pinned any more", "172.19.0.101", func(fw *plan.Firewall) {
				fw.Sources = slices.Clone(fw.Sources)
				for i, s := range fw.Sources {
					if s.Addr == addr(as("172.19.0.101")) {
						fw.Sources[i] = plan.Source{Addr: s.Addr, Verdict: plan.ViaHost}
					}
				}
			}},
		} {
			t.Run(f.String()+" "+c.name, func(t *testing.T) {
				before := l.fw
				flow := datagrams(t, l.container, as(c.from), as(worldAddr))
				flow()
				c.change(&l.fw)
				apply(t, l.m, l.fw, true, true)
				dropped := counter(t, l.m, CounterGuardPinned)
				for giveUp := time.Now().Add(patience); counter(t, l.m, CounterGuardPinned) == dropped; flow() {
					if time.Now().After(giveUp) {
						t.Fatal("nothing was dropped")
					}
				}
				l.nothingForeign(t)
				// What begins now goes that way.
				if seen, err := tryFrom(t, l, as(c.from), as(worldAddr)); err != nil || seen != as("172.31.0.8") {
					t.Errorf("a new connection is seen as %q, %v", seen, err)
				}
				l.fw = before
				apply(t, l.m, l.fw, true, true)
			})
		}
	}
}

// tryFrom asks a server of the world that is started for it.
func tryFrom(t *testing.T, l *lab, from, to string) (string, error) {
	t.Helper()
	serveAt(t, l.world, net.JoinHostPort(to, "8443"))
	return ask(t, l.container, from, net.JoinHostPort(to, "8443"), patience)
}

// datagrams returns what sends one more datagram of one connection.
func datagrams(t *testing.T, ns *namespace, from, to string) func() {
	t.Helper()
	var c *net.UDPConn
	var err error
	ns.Do(func() {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(from), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(to), 9)))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return func() {
		_, _ = c.Write([]byte("x")) // that nobody listens may have come back
		<-time.After(10 * time.Millisecond)
	}
}

// TestAnswerByThePrimary: a pinned container does not answer by the primary what
// was asked of another NIC, though nobody manages either of them. Others do as
// the host routes.
func TestAnswerByThePrimary(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.container, 8080)
	l.fw.Primary = "eth0"
	l.fw.NICs = slices.DeleteFunc(l.fw.NICs, func(n plan.FirewallNIC) bool { return n.Name == "eth0" })
	l.fw.Sources = slices.DeleteFunc(l.fw.Sources, func(s plan.Source) bool { return s.NICName == "eth0" })
	for _, a := range []string{"0.0.0.0", "::"} {
		to := map[string]string{"0.0.0.0": "172.19.0.101", "::": six("172.19.0.101")}[a]
		l.fw.Forwards = append(l.fw.Forwards, plan.Forward{Proto: model.TCP, Addr: addr(a), Port: 8095, To: addrPort(net.JoinHostPort(to, "8080"))})
	}
	apply(t, l.m, l.fw, true, true)
	l.calls(t, []call{
		{name: "to the primary", ns: l.world, from: worldAddr, to: "172.31.0.8", port: 8095, seen: worldAddr},
		{name: "by the VPN to the primary's address", ns: l.leg, from: "10.8.0.2", to: "172.31.0.8", port: 8095, seen: "10.8.0.2"},
		{name: "by the VPN, answered by the primary", ns: l.leg, from: "203.0.113.5", to: "10.8.0.1", port: 8095, err: errTimeout, counter: CounterGuardReply},
	})
	// The same of one that is not pinned is nobody's business.
	_, _ = ask(t, l.leg, "203.0.113.5", "10.8.0.1:8092", silence)
	if counted(t, l.world, "fabric", "foreign") == 0 {
		t.Error("an unpinned container's answer was stopped")
	}
}
