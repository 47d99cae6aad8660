package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// loopback is where the host's own packets come from, for the rule look-up.
const loopback = "lo"

func (c *compute) links() Links {
	l := Links{Null: len(c.nets) > 0}
	for _, n := range c.nets {
		if n.Stock {
			continue
		}
		b := BridgeLink{Name: n.Bridge, NetworkID: n.ID, MTU: n.MTU}
		for _, s := range n.Subnets() {
			if s.Gateway.IsValid() {
				b.Addrs = append(b.Addrs, netip.PrefixFrom(s.Gateway, s.Prefix.Bits()))
			}
		}
		b.NoIPv6 = len(b.Addrs) == 0 || n.Subnet6.IsValid() && !n.Gateway6.IsValid()
		l.Bridges = append(l.Bridges, b)
	}
	slices.SortFunc(l.Bridges, func(a, b BridgeLink) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range c.in.Endpoints {
		if n, ok := c.networks[e.NetworkID]; ok && e.Phase == model.Joined && e.Veth != "" {
			l.Veths = append(l.Veths, VethPort{Name: e.Veth, Bridge: n.Bridge, Isolated: n.NoICC && !c.bridgedFilter()})
		}
	}
	slices.SortFunc(l.Veths, func(a, b VethPort) int { return cmp.Compare(a.Name, b.Name) })
	for _, n := range c.managed {
		l.Grouped = append(l.Grouped, n.Name)
	}
	return l
}

// bridgedFilter reports whether the firewall sees what is bridged, too: then it
// keeps containers apart, and ports are not isolated. On their way to a sibling's
// published port packets are bridged there, which isolation would stop.
func (c *compute) bridgedFilter() bool {
	on := func(path string) bool { return c.in.Host.Sysctls[path] == "1" }
	return on(model.SysctlBridged4) && (on(model.SysctlBridged6) || !c.in.Host.IPv6)
}

// routing renders lock 1 and the way out of every managed NIC. With eth0 and
// eth1 managed, eth0 primary, and one network, IPv4 reads
//
//	5100: from all iif eip_bridge lookup 8100
//	5110: from all fwmark 0x1000000/0xff000000 lookup 8101
//	5110: from all fwmark 0x2000000/0xff000000 lookup 8102
//	5180: from all fwmark 0xff000000/0xff000000 goto 5199
//	5190: from all iif eip_bridge lookup 8199
//	5199: from all nop
//	32700: from 172.31.0.14 iif lo lookup main suppress_prefixlength 0 suppress_ifgroup 45
//	32701: from 172.31.0.14 iif lo lookup 8102
//	table 8100: 172.19.0.0/16 dev eip_bridge src 172.19.0.1
//	table 8101: every main route by eth0 · default via 172.31.0.1 dev eth0 onlink · unreachable default metric 4294967295
//	table 8199: default dev eipnull0 · unreachable default metric 4294967295
//
// and for each address of the host's own programs
//
//	5100: from 172.19.0.100 iif lo lookup 8100
//	5190: from 172.19.0.100 iif lo lookup 8199
func (c *compute) routing() Routing {
	var r Routing
	for _, f := range c.families() {
		c.nicRouting(&r, f)
		if len(c.nets) > 0 {
			c.lock(&r, f)
		}
	}
	sortRouting(&r)
	return r
}

// nicRouting adds a managed NIC's table and the rules that lead to it.
func (c *compute) nicRouting(r *Routing, f model.Family) {
	mask := c.in.Settings.Mask
	for _, n := range c.managed {
		table := c.ids[n.Name].Table()
		r.Rules = append(r.Rules, Rule{Family: f, Priority: model.PriorityMarked, Mark: mask.Of(c.ids[n.Name]), Mask: mask, Table: table})
		for _, route := range n.Routes {
			if n.Up && model.FamilyOf(route.Dst.Addr()) == f {
				r.Routes = append(r.Routes, Route{Family: f, Table: table, Dst: route.Dst, Dev: n.Name, Via: route.Via, Src: route.Src, Metric: route.Metric})
			}
		}
		if gw := n.Gateway(f).Addr; n.Up && gw.IsValid() {
			r.Routes = append(r.Routes, Route{Family: f, Table: table, Dst: everything(f), Dev: n.Name, Via: gw})
		}
		r.Routes = append(r.Routes, Route{Family: f, Table: table, Dst: everything(f), Metric: BackstopMetric, Unreachable: true})
		if !c.hostReplies(n) {
			continue
		}
		// One for each address: a prefix would also match another NIC's. And for
		// the host's own packets only: a container that bears such an address
		// as its source must not find a way out here.
		for _, p := range n.Addrs {
			if model.FamilyOf(p.Addr()) != f {
				continue
			}
			from := netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
			r.Rules = append(r.Rules,
				Rule{Family: f, Priority: model.PriorityHostRoutes, From: from, Iif: loopback, Table: tableMain, SuppressSpecific: true},
				Rule{Family: f, Priority: model.PriorityHostSource, From: from, Iif: loopback, Table: table})
		}
	}
}

const tableMain model.Table = 254

// lock adds lock 1: container bridges' own subnets, the way around for what is
// known as unpinned, and nowhere for everything else that a bridge sends.
func (c *compute) lock(r *Routing, f model.Family) {
	mask := c.in.Settings.Mask
	r.Rules = append(r.Rules,
		Rule{Family: f, Priority: model.PriorityViaHost, Mark: mask.ViaHost(), Mask: mask, Action: Goto, Target: model.PriorityEnd},
		Rule{Family: f, Priority: model.PriorityEnd, Action: Nop})
	r.Routes = append(r.Routes,
		Route{Family: f, Table: model.TableNull, Dst: everything(f), Dev: model.NullDevice},
		// Should somebody delete the null device, its route goes with it: then this one stands.
		Route{Family: f, Table: model.TableNull, Dst: everything(f), Metric: BackstopMetric, Unreachable: true})
	for _, n := range c.nets {
		if n.Local {
			lockLocal(r, f, n)
			continue
		}
		// Only for what containers send: the host's own look-ups find the
		// bridges in main, beside more specific routes that somebody may have.
		r.Rules = append(r.Rules, Rule{Family: f, Priority: model.PriorityInside, Iif: n.Bridge, Table: model.TableInside})
		if !n.Stock || c.strict[n.ID] {
			r.Rules = append(r.Rules, Rule{Family: f, Priority: model.PriorityLocked, Iif: n.Bridge, Table: model.TableNull})
		}
	}
	for _, b := range c.bridges() {
		c.inside(r, f, b.Name, b.Subnets)
	}
}

// lockLocal is lock 1 for what the host's own programs send from an entry's
// address: without a mark, which mark-out gives, it goes nowhere.
func lockLocal(r *Routing, f model.Family, n model.Network) {
	if f != model.IPv4 {
		return
	}
	r.Rules = append(r.Rules,
		Rule{Family: f, Priority: model.PriorityInside, From: n.Subnet4, Iif: loopback, Table: model.TableInside},
		Rule{Family: f, Priority: model.PriorityLocked, From: n.Subnet4, Iif: loopback, Table: model.TableNull})
}

// bridges lists all container bridges: ours, those that were seen, and those
// that Docker's API told of though their names do not say so.
func (c *compute) bridges() []model.Bridge {
	out := slices.Clone(c.in.Host.Bridges)
	for _, n := range c.in.Networks {
		known := n.Local || slices.ContainsFunc(out, func(b model.Bridge) bool { return b.Name == n.Bridge })
		if !known && n.Bridge != "" {
			out = append(out, model.Bridge{Name: n.Bridge, Subnets: n.Subnets()})
		}
	}
	return out
}

// inside routes a bridge's subnets. By a bridge without an IPv6 address nothing
// can be routed: its IPv6 may be off.
func (c *compute) inside(r *Routing, f model.Family, bridge string, subnets []model.Subnet) {
	for _, s := range subnets {
		if model.FamilyOf(s.Prefix.Addr()) == f && (f == model.IPv4 || s.Gateway.IsValid()) {
			r.Routes = append(r.Routes, Route{Family: f, Table: model.TableInside, Dst: s.Prefix.Masked(), Dev: bridge, Src: s.Gateway})
		}
	}
}

func everything(f model.Family) netip.Prefix {
	if f == model.IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func sortRouting(r *Routing) {
	slices.SortFunc(r.Rules, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Mark, b.Mark),
			a.From.Compare(b.From), cmp.Compare(a.Iif, b.Iif))
	})
	slices.SortFunc(r.Routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Dev, b.Dev))
	})
	r.Rules = slices.Compact(r.Rules)
	r.Routes = slices.Compact(r.Routes)
}
