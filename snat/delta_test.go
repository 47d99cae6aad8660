package snat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestDelta: what is left of two firewalls makes the same difference as the whole.
func TestDelta(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	nics := []plan.FirewallNIC{{ID: 1, Name: "eth0"}, {ID: 2, Name: "eth1"}}
	smaller := 0
	for i := range 300 {
		a, b := randomFirewall(rng, nics, true), randomFirewall(rng, nics, true)
		if i%3 == 0 { // few changes
			b = clone(a)
			if n := len(b.Sources); n > 0 {
				b.Sources = slices.Delete(b.Sources, rng.IntN(n), n)
			}
		}
		if i%5 == 0 { // an order of its own
			slices.Reverse(b.Forwards)
		}
		before, after, ok := delta(a, b)
		if !ok {
			t.Fatal("not comparable")
		}
		if len(after.Sources) < len(b.Sources) {
			smaller++
		}
		held, want := rendered(t, a), rendered(t, b)
		patch(held, rendered(t, before), rendered(t, after))
		if diff := cmp.Diff(want, held); diff != "" {
			t.Fatalf("step %d (-want +got):\n%s", i, diff)
		}
	}
	if smaller == 0 {
		t.Error("nothing was ever left out")
	}
}

func rendered(t *testing.T, fw plan.Firewall) map[string]elements {
	t.Helper()
	sets, err := renderElements(fw)
	if err != nil {
		t.Fatal(err)
	}
	return sets
}

func TestDeltaRefuses(t *testing.T) {
	for name, harm := range map[string]func(*plan.Firewall){
		"mask":            func(fw *plan.Firewall) { fw.Mask = 0x00ff0000 },
		"other NICs":      func(fw *plan.Firewall) { fw.NICs = fw.NICs[:1] },
		"a source twice":  func(fw *plan.Firewall) { fw.Sources[1].Addr = fw.Sources[0].Addr },
		"a port twice":    func(fw *plan.Firewall) { fw.Forwards[4], fw.Forwards[4].To = fw.Forwards[0], fw.Forwards[1].To },
		"not in an order": func(fw *plan.Firewall) { slices.Reverse(fw.Sources) },
	} {
		fw := sample()
		harm(&fw)
		if _, _, ok := delta(sample(), fw); ok {
			t.Errorf("%s: compared in part", name)
		}
	}
	if _, _, ok := delta(sample(), sample()); !ok {
		t.Error("equal firewalls are not comparable")
	}
	fw := grouped()
	fw.Groups = fw.Groups[:2] // none on level 3
	if _, _, ok := delta(grouped(), fw); ok {
		t.Error("another level of cgroups: compared in part")
	}
}

// TestPruneAfterKeeping: a pass without prune leaves what is not in its
// firewall, so the next one has to look at the whole.
func TestPruneAfterKeeping(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	apply(t, m, sample(), true, true)
	fw := sample()
	fw.Sources = fw.Sources[1:]
	fw.Sources[0].Address = addr("172.31.0.9")
	apply(t, m, fw, false, true)
	apply(t, m, fw, true, true) // takes away the source that is gone
	holds(t, ns, fw)
	apply(t, m, sample(), false, true)
	apply(t, m, fw, true, true)
	holds(t, ns, fw)
}

// TestCallersSlices: what the caller does to its firewall after Apply does not
// change what the manager believes.
func TestCallersSlices(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	fw := sample()
	apply(t, m, fw, true, true)
	fw.Sources[0].Address = addr("172.31.0.9")
	fw.Forwards[0].To = addrPort("172.19.0.100:81")
	apply(t, m, fw, true, true)
	holds(t, ns, fw)
}

func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("%d sources, one changed", n), func(b *testing.B) {
			ns := newNamespace(b)
			m := newManager(b, ns)
			fw := plan.Firewall{Mask: model.DefaultMask, NICs: []plan.FirewallNIC{{ID: 1, Name: "eth0"}}}
			a := addr("10.0.0.1")
			for range n {
				fw.Sources = append(fw.Sources, plan.Source{Addr: a, NIC: 1, NICName: "eth0", Address: addr("172.31.0.8")})
				a = a.Next()
			}
			apply(b, m, fw, true, true)
			i := 0
			for b.Loop() {
				i++
				fw.Sources[n/2].Address = []netip.Addr{addr("172.31.0.8"), addr("172.31.0.9")}[i%2]
				apply(b, m, fw, true, true)
			}
		})
	}
}
