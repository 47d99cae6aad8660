package snat

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
)

// TestApart: containers that are not to reach each other reach published ports
// all the same. Where the firewall sees what is bridged it does that alone;
// elsewhere the ports are isolated.
func TestApart(t *testing.T) {
	for _, bridgeNF := range []bool{true, false} {
		t.Run(fmt.Sprintf("br_netfilter %v", bridgeNF), func(t *testing.T) { testApart(t, newLab(t, bridgeNF), bridgeNF) })
	}
}

func testApart(t *testing.T, l *lab, bridgeNF bool) {
	t.Helper()
	serve(t, l.container, 8080)
	serve(t, l.sibling, 8080)
	sibling := func(how string) {
		t.Helper()
		before := counter(t, l.m, CounterIsolated)
		seen, err := ask(t, l.container, "172.19.0.100", "172.19.0.120:8080", silence)
		if !errors.Is(err, errTimeout) && !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("a sibling %s: seen as %q, error %v", how, seen, err)
		}
		if (bridgeNF || how != "") && !moves(t, l.m, CounterIsolated, before) {
			t.Errorf("a sibling %s: counter isolated did not move", how)
		}
	}
	if seen, err := ask(t, l.container, "172.19.0.100", "172.19.0.120:8080", patience); seen != "172.19.0.100" || err != nil {
		t.Errorf("a sibling, as long as nobody minds: seen as %q, error %v", seen, err)
	}
	l.fw.Apart = l.fw.Ours
	apply(t, l.m, l.fw, true, true)
	if !bridgeNF {
		l.host.run(t, "ip link set veth0 type bridge_slave isolated on", "ip link set veth3 type bridge_slave isolated on")
	}
	sibling("")
	if seen, err := ask(t, l.sibling, "172.19.0.120", "172.31.16.14:8090", patience); seen != "172.19.0.1" || err != nil {
		t.Errorf("a sibling's published port: seen as %q, error %v", seen, err)
	}
	l.container.run(t, "ip route add 172.19.0.120 via 172.19.0.1")
	sibling("by the gateway")
}

// TestBare: on a network without masquerade an unpinned container leaves with
// its own address; a pinned one never does, nor does a held one leave at all.
func TestBare(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.world, 80)
	serve(t, l.leg, 80)
	l.leg.run(t, "nft delete table inet fabric") // it drops just that
	l.fw.Masqueraded = prefixes("172.19.0.100/32", "172.19.0.101/32", "172.19.0.104/32")
	apply(t, l.m, l.fw, true, true)
	for _, c := range []struct{ from, to, seen string }{
		{"172.19.0.102", "10.8.0.2:80", "172.19.0.102"},
		{"172.19.0.100", worldAddr + ":80", "172.31.0.8"},
		{"172.19.0.101", worldAddr + ":80", "172.31.16.14"},
		{"172.19.0.101", "198.51.100.2:80", "172.31.0.8"}, // excepted
	} {
		if seen, err := ask(t, l.container, c.from, c.to, patience); seen != c.seen || err != nil {
			t.Errorf("%s to %s: seen as %q, error %v; want %q", c.from, c.to, seen, err, c.seen)
		}
	}
	if seen, err := ask(t, l.container, "172.19.0.103", "10.8.0.2:80", patience); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("held: seen as %q, error %v", seen, err)
	}
	l.fw.Masqueraded = prefixes("172.19.0.0/16")
	apply(t, l.m, l.fw, true, true)
	if seen, err := ask(t, l.container, "172.19.0.102", "10.8.0.2:80", patience); seen != "10.8.0.1" || err != nil {
		t.Errorf("with masquerade: seen as %q, error %v", seen, err)
	}
}
