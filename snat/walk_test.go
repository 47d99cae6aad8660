package snat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestRandomWalk goes through random firewalls: whatever was before, the
// kernel holds just what was asked for after.
func TestRandomWalk(t *testing.T) {
	for _, owned := range []bool{true, false} {
		t.Run(fmt.Sprintf("owned %v", owned), func(t *testing.T) {
			ns := newNamespace(t)
			m := newManager(t, ns)
			if !owned {
				disown(t, ns, m)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			fw := plan.Firewall{Mask: model.DefaultMask}
			for i := range 200 {
				// Mostly with the NICs of the step before: then only what differs is looked at.
				fw = randomFirewall(rng, fw.NICs, i%4 != 0)
				if _, err := m.Apply(t.Context(), fw, true); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				holds(t, ns, fw)
				apply(t, m, fw, true, false)
			}
			empty := plan.Firewall{Mask: model.DefaultMask}
			apply(t, m, empty, true, true)
			holds(t, ns, empty)
		})
	}
}

func randomFirewall(rng *rand.Rand, nics []plan.FirewallNIC, keep bool) plan.Firewall {
	fw := plan.Firewall{Mask: model.DefaultMask}
	if keep {
		fw.NICs = nics
	}
	coin := func() bool { return rng.IntN(2) == 0 }
	host := func(id model.NICID, f model.Family) netip.Addr {
		if f == model.IPv6 {
			return addr(fmt.Sprintf("2001:db8::%d:%d", id, rng.IntN(2)))
		}
		return addr(fmt.Sprintf("172.31.%d.%d", id, rng.IntN(2)))
	}
	for id := range model.NICID(6) {
		if !keep && coin() {
			fw.NICs = append(fw.NICs, plan.FirewallNIC{ID: id + 1, Name: fmt.Sprintf("eth%d", (int(id)+rng.IntN(2))%6), HostReplies: coin()})
		}
		if coin() {
			fw.Uplinks = append(fw.Uplinks, plan.Uplink{NIC: fmt.Sprintf("eth%d", id), Addr: host(id, model.IPv4)},
				plan.Uplink{NIC: fmt.Sprintf("eth%d", id), Addr: host(id, model.IPv6)})
		}
		if bridge := fmt.Sprintf("br%d", id); coin() {
			fw.Inside = append(fw.Inside, bridge)
			if coin() {
				fw.Internal = append(fw.Internal, bridge)
			}
			switch rng.IntN(4) {
			case 0:
				fw.Locked = append(fw.Locked, bridge)
			case 1:
				fw.Locked, fw.Ours = append(fw.Locked, bridge), append(fw.Ours, bridge)
			case 2:
				fw.Watched = append(fw.Watched, bridge)
			}
		}
		if coin() {
			fw.Local = append(fw.Local, addr(fmt.Sprintf("172.18.0.%d", id)))
		}
		if coin() {
			fw.Own = append(fw.Own, netip.PrefixFrom(addr(fmt.Sprintf("172.%d.0.0", 16+id)), 12+rng.IntN(6)).Masked())
			fw.Own = append(fw.Own, netip.PrefixFrom(addr(fmt.Sprintf("fd00:%d::", id)), 28+rng.IntN(40)).Masked())
		}
		if coin() {
			fw.OurSubnets = append(fw.OurSubnets, netip.PrefixFrom(addr(fmt.Sprintf("172.%d.0.0", 16+id)), 16).Masked())
		}
		for _, src := range []string{"172.19.0.2", "fd00:19::2"} {
			if to := addr(src); rng.IntN(3) == 0 {
				fw.ExceptBy = append(fw.ExceptBy, plan.Exception{Source: to, To: netip.PrefixFrom(to, rng.IntN(to.BitLen()+1)).Masked()})
			}
		}
		if rng.IntN(4) == 0 {
			fw.Except = append(fw.Except, netip.PrefixFrom(addr("255.255.255.255"), rng.IntN(33)).Masked(),
				netip.PrefixFrom(addr("ffff::"), rng.IntN(129)).Masked(),
				netip.PrefixFrom(addr(fmt.Sprintf("10.%d.0.0", id)), 14+rng.IntN(4)).Masked())
		}
	}
	for _, f := range model.Families {
		if coin() {
			fw.NoForward = append(fw.NoForward, f)
		}
	}
	for i := range 40 {
		f := model.Families[rng.IntN(2)]
		s := plan.Source{Addr: addr(fmt.Sprintf("172.19.0.%d", i+2))}
		if f == model.IPv6 {
			s.Addr = addr(fmt.Sprintf("fd00:19::%d", i+2))
		}
		switch v := plan.Verdict(rng.IntN(5)); {
		case v == plan.Pinned && len(fw.NICs) > 0:
			n := fw.NICs[rng.IntN(len(fw.NICs))]
			s.NIC, s.NICName, s.Address = n.ID, n.Name, host(n.ID, f)
		case v == plan.ViaHost, v == plan.Pending, v == plan.Blocked:
			s.Verdict = v
		default:
			continue // not known
		}
		fw.Sources = append(fw.Sources, s)
		p := plan.Forward{Proto: model.TCP, Addr: host(0, f), Port: uint16(8000 + i), To: netip.AddrPortFrom(s.Addr, uint16(80+rng.IntN(2)))}
		if coin() {
			p.Proto = model.UDP
		}
		if coin() {
			p.Addr = map[model.Family]netip.Addr{model.IPv4: netip.IPv4Unspecified(), model.IPv6: netip.IPv6Unspecified()}[f]
		}
		fw.Forwards = append(fw.Forwards, p)
	}
	slices.SortFunc(fw.Sources, bySource)
	return fw
}

// TestForeignEdit has somebody else change a table that the kernel does not protect.
func TestForeignEdit(t *testing.T) {
	edits := map[string][]string{
		"chain flushed":     {"nft flush chain inet eipnet guard-post"},
		"rule added":        {"nft add rule inet eipnet forward accept"},
		"rule in front":     {"nft insert rule inet eipnet forward accept"},
		"element deleted":   {"nft delete element inet eipnet locked { eip_bridge }"},
		"element added":     {"nft add element inet eipnet known4 { 192.0.2.1 }"},
		"verdict changed":   {"nft delete element inet eipnet pin4 { 172.19.0.100 }", "nft add element inet eipnet pin4 { 172.19.0.100 : accept }"},
		"interval added":    {"nft add element inet eipnet own4 { 10.0.0.0/8 }"},
		"policy":            {"nft chain inet eipnet forward { policy drop ; }"},
		"foreign chain":     {"nft add chain inet eipnet x", "nft add rule inet eipnet x ip saddr { 192.0.2.1, 192.0.2.2 } goto nic-1"},
		"foreign set":       {"nft add set inet eipnet x { type ipv4_addr ; }", "nft add rule inet eipnet forward ip saddr @x drop"},
		"foreign counter":   {"nft add counter inet eipnet x", "nft add rule inet eipnet forward counter name x"},
		"table deleted":     {"nft delete table inet eipnet"},
		"ruleset flushed":   {"nft flush ruleset"},
		"set of other type": {"nft flush chain inet eipnet mark-pre", "nft flush chain inet eipnet ct-forward", "nft flush chain inet eipnet clamp", "nft flush chain inet eipnet forward", "nft flush chain inet eipnet snat-post", "nft delete set inet eipnet locked", "nft add set inet eipnet locked { type ipv4_addr ; }"},
		"other hook":        {"nft delete chain inet eipnet mark-pre", "nft add chain inet eipnet mark-pre { type filter hook input priority 0 ; }"},
	}
	for name, commands := range edits {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			m := newManager(t, ns)
			disown(t, ns, m)
			apply(t, m, sample(), true, true)
			ns.run(t, commands...)
			apply(t, m, sample(), true, true)
			holds(t, ns, sample())
			apply(t, m, sample(), true, false)
			ns.run(t, "nft add table inet other") // somebody else's business
			apply(t, m, sample(), true, false)
		})
	}
}
