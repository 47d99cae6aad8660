package snat

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
)

// TestClaimsOfThePinned: who takes a port away does not take the claim to its
// address away, as long as that is pinned, by whichever process.
func TestClaimsOfThePinned(t *testing.T) {
	for _, shared := range []bool{false, true} {
		ns := newNamespace(t)
		open := func() *Manager {
			m, err := New(Options{NetNS: ns.FD(), Shared: shared})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = m.Close() })
			return m
		}
		m := open()
		port := func(name string, addrs ...netip.Addr) BridgePort {
			return BridgePort{Bridge: "docker0", Name: name, MAC: "02:00:00:00:00:0" + name[1:], Addrs: addrs}
		}
		claimed := func(what string, want bool, elements ...string) {
			t.Helper()
			list := ns.run(t, "nft list table bridge eipnet")
			for _, e := range elements {
				if strings.Contains(list, e) != want {
					t.Errorf("shared %v, %s: %s is there: %v\n%s", shared, what, e, !want, list)
				}
			}
		}
		pinned := []string{`"p1" . 172.19.0.100`, "{ 172.19.0.100 }", `"p1" . fd00:19::101`, "{ fd00:19::101 }"}
		apply(t, m, sample(), true, true)
		applyBridge(t, m, []BridgePort{port("p1", addr("172.19.0.100"), addr("fd00:19::101")), port("p2", addr("172.19.0.102"))}, true, true)
		applyBridge(t, m, []BridgePort{port("p3")}, true, true)
		claimed("the ports are gone", true, pinned...)
		claimed("the ports are gone", false, "172.19.0.102")
		applyBridge(t, m, []BridgePort{port("p3")}, true, false)
		applyBridge(t, m, nil, true, true)
		claimed("all ports are gone", true, pinned...)
		applyBridge(t, m, nil, true, false)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m = open()
		applyBridge(t, m, []BridgePort{port("p3")}, true, true)
		claimed("another process", true, pinned...)
		applyBridge(t, m, []BridgePort{port("p4", addr("172.19.0.100"))}, true, true)
		claimed("another port has it", true, `"p4" . 172.19.0.100`, `"p1" . fd00:19::101`)
		claimed("another port has it", false, `"p1" . 172.19.0.100`)
		fw := sample()
		fw.Sources = []plan.Source{}
		apply(t, m, fw, true, true)
		applyBridge(t, m, []BridgePort{port("p4")}, true, true)
		claimed("nothing is pinned", false, "172.19.0.100", "fd00:19::101")
		applyBridge(t, m, nil, true, true)
		holdsPorts(t, ns, nil)
	}
}
