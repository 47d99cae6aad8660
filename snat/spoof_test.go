package snat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func applyBridge(tb testing.TB, m *Manager, ports []BridgePort, prune, want bool) {
	tb.Helper()
	changed, err := m.ApplyBridge(tb.Context(), ports, prune)
	if err != nil {
		tb.Fatal(err)
	}
	if changed != want {
		tb.Fatalf("ApplyBridge wrote: %v, want %v", changed, want)
	}
}

// holdsPorts compares the kernel's table, read anew, with the ports.
func holdsPorts(tb testing.TB, ns *namespace, ports []BridgePort) {
	tb.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	got, err := readSpoofTable(conn)
	if err != nil {
		tb.Fatal(err)
	}
	if len(ports) == 0 {
		if got.exists {
			tb.Fatal("there is a table for no ports")
		}
		return
	}
	want, err := renderSpoof(ports)
	if err != nil {
		tb.Fatal(err)
	}
	if got.broken != "" || len(got.otherSets)+len(got.otherCounters) > 0 {
		tb.Fatalf("broken %q, foreign sets %q", got.broken, got.otherSets)
	}
	if diff := cmp.Diff(want.sets, got.sets); diff != "" {
		tb.Fatalf("elements (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.comments, got.chains); diff != "" {
		tb.Fatalf("rules (-want +got):\n%s", diff)
	}
}

func samplePorts() []BridgePort {
	return []BridgePort{
		{Bridge: "eip_bridge", Name: "eip0a1b2c3d", MAC: "02:42:ac:13:00:64", Addrs: []netip.Addr{addr("172.19.0.100"), addr("fd00:19::64")}, Only: true},
		{Bridge: "eip_bridge", Name: "eip0a1b2c3e", MAC: "02:42:ac:13:00:65", Addrs: []netip.Addr{addr("172.19.0.101"), addr("fe80::1")}, Only: true},
		{Bridge: "docker0", Name: "veth8d9ef01", MAC: "02:42:ac:11:00:02", Addrs: []netip.Addr{addr("::ffff:172.17.0.2")}},
		{Bridge: "docker0", Name: "veth8d9ef02"},
	}
}

func TestBridgeTable(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	applyBridge(t, m, samplePorts(), true, true)
	holdsPorts(t, ns, samplePorts())
	claimed, err := m.Claimed()
	if slices.SortFunc(claimed, netip.Addr.Compare); err != nil ||
		!slices.Equal(claimed, []netip.Addr{addr("172.17.0.2"), addr("172.19.0.100"), addr("172.19.0.101"), addr("fd00:19::64")}) { // link-local ones are nobody's alone
		t.Errorf("claimed %v, %v", claimed, err)
	}
	lines := listing(t, ns, "bridge")
	golden(t, "testdata/spoof.golden", strings.Join(lines, ""))
	other := newNamespace(t)
	loadable := slices.DeleteFunc(lines, func(line string) bool {
		return strings.Contains(line, "@th,64,128") // before 1.0.9 nft has no name for the target, nor its type
	})
	other.nft(t, strings.Join(loadable, "")) // what nft prints, nft loads
}

func TestApplyBridgeTwiceWritesOnce(t *testing.T) {
	for _, owned := range []bool{true, false} {
		t.Run(fmt.Sprintf("owned %v", owned), func(t *testing.T) {
			ns := newNamespace(t)
			m := newManager(t, ns)
			if !owned {
				disown(t, ns, m)
			}
			applyBridge(t, m, nil, false, false)
			applyBridge(t, m, nil, true, false) // no table for no ports
			holdsPorts(t, ns, nil)
			apply(t, m, sample(), true, true)
			applyBridge(t, m, samplePorts(), true, true)
			before := ns.run(t, "nft list ruleset")
			for range 2 {
				applyBridge(t, m, samplePorts(), true, false)
				applyBridge(t, m, samplePorts(), false, false)
				applyBridge(t, m, nil, false, false)
				apply(t, m, sample(), true, false)
				m.bridge.forget() // what is read back is what was written
			}
			if diff := cmp.Diff(before, ns.run(t, "nft list ruleset")); diff != "" {
				t.Errorf("ruleset changed:\n%s", diff)
			}
			unpinned := sample()
			unpinned.Sources = nil // a claim to a pinned address would stay
			apply(t, m, unpinned, true, true)
			applyBridge(t, m, nil, true, true)
			applyBridge(t, m, nil, true, false)
			holdsPorts(t, ns, nil)
			holds(t, ns, unpinned)
			applyBridge(t, m, samplePorts(), false, true)
			holdsPorts(t, ns, samplePorts())
		})
	}
}

func TestBridgeOwnership(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	if !m.Owned() {
		t.Skip("this kernel has no persistent table ownership")
	}
	applyBridge(t, m, samplePorts(), true, true)
	foreign := func(want bool) {
		t.Helper()
		for _, command := range []string{"nft flush chain bridge eipnet spoof", "nft delete element bridge eipnet only { eip0a1b2c3d }", "nft delete table bridge eipnet"} {
			if _, err := ns.exec(t.Context(), "", command); (err == nil) != want {
				t.Errorf("%s: %v", command, err)
			}
		}
	}
	foreign(false)
	ns.run(t, "nft flush ruleset")
	holdsPorts(t, ns, samplePorts())
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ApplyBridge(t.Context(), samplePorts(), true); err == nil {
		t.Error("a closed manager applied")
	}
	holdsPorts(t, ns, samplePorts()) // and stays
	m = newManager(t, ns)
	applyBridge(t, m, samplePorts(), true, false)
	foreign(false) // adopted
	applyBridge(t, m, nil, true, true)
	applyBridge(t, m, samplePorts(), true, true)
	foreign(false) // made again
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	foreign(true)
}

// TestBridgeForeignOwner has another process hold the table.
func TestBridgeForeignOwner(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	if !m.Owned() {
		t.Skip("this kernel has no persistent table ownership")
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	conn.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge, Flags: nftables.TableFlagOwner | nftables.TableFlagPersist})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ApplyBridge(t.Context(), samplePorts(), true); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "holds table bridge eipnet") {
		t.Errorf("ApplyBridge: %v", err)
	}
	if err := conn.CloseLasting(); err != nil {
		t.Fatal(err)
	}
	applyBridge(t, m, samplePorts(), true, true)
	holdsPorts(t, ns, samplePorts())
}

func TestBridgeForeignEdit(t *testing.T) {
	edits := map[string][]string{
		"chain flushed":     {"nft flush chain bridge eipnet own"},
		"rule in front":     {"nft insert rule bridge eipnet spoof accept"},
		"element deleted":   {"nft delete element bridge eipnet only { eip0a1b2c3d }"},
		"element added":     {"nft add element bridge eipnet claimed4 { 192.0.2.1 }"},
		"policy":            {"nft chain bridge eipnet spoof { policy drop ; }"},
		"foreign chain":     {"nft add chain bridge eipnet x", "nft add rule bridge eipnet x goto own"},
		"foreign set":       {"nft add set bridge eipnet x { type ipv4_addr ; }", "nft add rule bridge eipnet own ip saddr @x drop"},
		"foreign counter":   {"nft add counter bridge eipnet x", "nft add rule bridge eipnet own counter name x"},
		"table deleted":     {"nft delete table bridge eipnet"},
		"ruleset flushed":   {"nft flush ruleset"},
		"other hook":        {"nft delete chain bridge eipnet spoof", "nft add chain bridge eipnet spoof { type filter hook input priority 0 ; }"},
		"set of other type": {"nft flush chain bridge eipnet spoof", "nft flush chain bridge eipnet spoof-host", "nft delete set bridge eipnet only", "nft add set bridge eipnet only { type ipv4_addr ; }"},
	}
	for name, commands := range edits {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			m := newManager(t, ns)
			disown(t, ns, m)
			applyBridge(t, m, samplePorts(), true, true)
			ns.run(t, commands...)
			applyBridge(t, m, samplePorts(), true, true)
			holdsPorts(t, ns, samplePorts())
			ns.run(t, "nft add table inet other") // somebody else's business
			applyBridge(t, m, samplePorts(), true, false)
		})
	}
}

func TestBridgeWithoutPrune(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	all := samplePorts()
	applyBridge(t, m, all[:2], true, true)
	applyBridge(t, m, all[2:], false, true)
	holdsPorts(t, ns, all)
	applyBridge(t, m, all[2:], false, false)
	applyBridge(t, m, all[2:], true, true)
	holdsPorts(t, ns, all[2:])
}

func TestBridgePortsRefused(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	applyBridge(t, m, samplePorts(), true, true)
	for want, p := range map[string]BridgePort{
		"want a name":               {Bridge: "docker0"},
		"is no Ethernet address":    {Bridge: "docker0", Name: "veth1", MAC: "02:42:ac:11:00:02:00:01"},
		"is no container's address": {Bridge: "docker0", Name: "veth1", Addrs: []netip.Addr{{}}},
		"is on bridge":              {Bridge: "br-1", Name: "veth8d9ef02"},
	} {
		if _, err := m.ApplyBridge(t.Context(), append(samplePorts(), p), true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one with %q", p, err, want)
		}
	}
	holdsPorts(t, ns, samplePorts())
	applyBridge(t, m, samplePorts(), true, false)
}

func TestBridgeRandomWalk(t *testing.T) {
	for _, owned := range []bool{true, false} {
		t.Run(fmt.Sprintf("owned %v", owned), func(t *testing.T) {
			ns := newNamespace(t)
			m := newManager(t, ns)
			if !owned {
				disown(t, ns, m)
			}
			rng := rand.New(rand.NewPCG(3, 4))
			var last []BridgePort
			for step := range 100 {
				var ports []BridgePort
				for i := range rng.IntN(20) {
					p := BridgePort{Bridge: fmt.Sprintf("br%d", i%3), Name: fmt.Sprintf("veth%d", i), Only: rng.IntN(2) == 0}
					if rng.IntN(4) > 0 {
						p.MAC = fmt.Sprintf("02:42:ac:11:00:%02x", rng.IntN(30))
					}
					for range rng.IntN(4) {
						p.Addrs = append(p.Addrs, [...]netip.Addr{
							addr(fmt.Sprintf("172.17.0.%d", rng.IntN(30))), addr(fmt.Sprintf("fd00:17::%x", rng.IntN(30)+1)),
						}[rng.IntN(2)])
					}
					ports = append(ports, p)
				}
				changed, err := m.ApplyBridge(t.Context(), ports, true)
				if err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				if !changed && !slices.EqualFunc(last, ports, samePort) && len(ports) > 3 {
					t.Logf("step %d: other ports, nothing written", step)
				}
				last = ports
				holdsPorts(t, ns, ports)
				applyBridge(t, m, ports, true, false)
				if len(ports) > 0 && step%7 == 0 {
					ports[0].Only = !ports[0].Only // by the caller, in its own slice
					applyBridge(t, m, ports, true, true)
				}
			}
			applyBridge(t, m, nil, true, len(last) > 0)
			holdsPorts(t, ns, nil)
		})
	}
}

// TestManyPorts measures.
func TestManyPorts(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	var ports []BridgePort
	for i := range 1000 {
		ports = append(ports, BridgePort{
			Bridge: "eip_bridge", Name: fmt.Sprintf("eip%08x", i), MAC: fmt.Sprintf("02:42:ac:13:%02x:%02x", i/256, i%256),
			Addrs: []netip.Addr{addr(fmt.Sprintf("172.19.%d.%d", i/250, i%250+1)), addr(fmt.Sprintf("fd00:19::%x", i+1))}, Only: true,
		})
	}
	timed := func(what string, want bool) {
		t.Helper()
		start := time.Now()
		applyBridge(t, m, ports, true, want)
		t.Logf("%-40s %v", what, time.Since(start).Round(10*time.Microsecond))
	}
	timed("1,000 ports (8,000 elements)", true)
	timed("no change", false)
	ports[17].Addrs[0] = addr("172.19.9.9")
	timed("one address changed", true)
	m.bridge.forget()
	timed("no change, read anew", false)
	holdsPorts(t, ns, ports)
}

// BenchmarkSpoof sends datagrams from a container to its host, which has nobody listening.
func BenchmarkSpoof(b *testing.B) {
	for _, n := range []int{-1, 0, 1000} {
		name := "no table"
		if n >= 0 {
			name = fmt.Sprintf("%d other ports", n)
		}
		b.Run(name, func(b *testing.B) {
			l := newSpoofLab(b, 0)
			l.settled(b)
			for i := range n {
				l.ports = append(l.ports, BridgePort{
					Bridge: "br0", Name: fmt.Sprintf("eip%08x", i), MAC: fmt.Sprintf("02:42:ac:13:%02x:%02x", i/256, i%256),
					Addrs: []netip.Addr{addr(fmt.Sprintf("172.19.%d.%d", 1+i/250, i%250+1))}, Only: true,
				})
			}
			if n >= 0 {
				applyBridge(b, l.m, l.ports, true, true)
			}
			for _, box := range []string{"a", "s", "u"} {
				ip := map[string]string{"a": "172.19.0.2", "s": "172.20.0.2", "u": "172.20.0.4"}[box]
				network := map[string]string{"a": "driver", "s": "stock", "u": "not listed"}[box]
				out := newPacketSocket(b, l.boxes[box], "e"+box)
				// Past the host's IP, for the bridge's cost alone.
				f := frame("02:42:ac:00:00:f"+map[bool]string{true: "0", false: "1"}[box == "a"], spoofMAC(box), unix.ETH_P_IP, udp(ip, "240.0.0.1", nil))
				b.Run(network, func(b *testing.B) {
					for b.Loop() {
						out.send(b, f)
					}
				})
			}
		})
	}
}

// An address that is claimed goes to another port only with ApplyBridge, and a
// new one at once: no pin can be there for it yet.
func TestClaimBridge(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	port := func(name, address string) BridgePort {
		return BridgePort{Bridge: "b", Name: name, MAC: "02:00:00:00:00:0" + name[1:], Addrs: []netip.Addr{addr(address), addr(six(address))}, Only: true}
	}
	listed := func(want ...string) {
		t.Helper()
		for _, set := range []string{"port4", "port6"} {
			var got []string
			for name := range strings.SplitSeq(ns.run(t, "nft list set bridge eipnet "+set), `"`) {
				if strings.HasPrefix(name, "p") && len(name) == 2 {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s has ports %v, want %v", set, got, want)
			}
		}
	}
	claim := func(ports ...BridgePort) {
		t.Helper()
		if _, err := m.ClaimBridge(t.Context(), ports); err != nil {
			t.Fatal(err)
		}
	}
	claim(port("p1", "172.19.0.100"))
	listed("p1")
	next := []BridgePort{port("p2", "172.19.0.100"), port("p3", "172.19.0.101")}
	claim(next...)
	listed("p1", "p3")
	if _, err := m.ApplyBridge(t.Context(), next, true); err != nil {
		t.Fatal(err)
	}
	listed("p2", "p3")
	if changed, err := m.ClaimBridge(t.Context(), next); changed || err != nil {
		t.Errorf("claimed once more: %v, %v", changed, err)
	}
}
