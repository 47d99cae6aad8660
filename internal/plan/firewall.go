package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

func (c *compute) firewall(ports []Port) Firewall {
	fw := Firewall{Mask: c.in.Settings.Mask}
	for _, n := range c.managed {
		fw.NICs = append(fw.NICs, FirewallNIC{ID: c.ids[n.Name], Name: n.Name, HostReplies: c.hostReplies(n)})
	}
	if fw.Cgroups = len(c.hostPins) > 0 || c.in.Settings.Cgroups && c.in.HostPinned; fw.Cgroups {
		c.groups(&fw)
	}
	if c.in.Host.ForwardingOurs {
		fw.NoForward = append(fw.NoForward, model.IPv4)
	}
	if c.in.Host.Forwarding6Ours {
		fw.NoForward = append(fw.NoForward, model.IPv6)
	}
	if fw.Cgroups || len(c.nets) > 0 || len(fw.NoForward) > 0 {
		fw.Inside, fw.Except = c.insideLinks(), slices.Clone(c.in.Settings.Except)
	}
	if len(c.nets) == 0 {
		// The guard and its sets watch over endpoints; without networks the
		// table is a skeleton that lets everything pass that was forwarded before.
		return fw
	}
	for _, n := range c.in.Host.NICs {
		if n.Primary {
			fw.Primary = n.Name
		}
		for _, p := range n.Addrs {
			fw.Uplinks = append(fw.Uplinks, Uplink{n.Name, p.Addr()})
		}
	}
	for _, n := range c.nets {
		switch {
		case n.Stock && !c.strict[n.ID]:
			fw.Watched = append(fw.Watched, n.Bridge)
			continue
		case n.Local:
			fw.Local, fw.Own = append(fw.Local, n.Gateway4), append(fw.Own, n.Subnet4)
			continue
		}
		fw.Locked = append(fw.Locked, n.Bridge)
		for _, s := range n.Subnets() {
			fw.Own = append(fw.Own, s.Prefix)
		}
		if !n.Stock {
			fw.Ours = append(fw.Ours, n.Bridge)
			if n.NoICC {
				fw.Apart = append(fw.Apart, n.Bridge)
			}
			for _, s := range n.Subnets() {
				fw.OurSubnets = append(fw.OurSubnets, s.Prefix)
			}
		}
	}
	fw.Internal = c.internal()
	slices.Sort(fw.Locked)
	slices.Sort(fw.Watched)
	slices.Sort(fw.Ours)
	slices.Sort(fw.Apart)
	slices.SortFunc(fw.OurSubnets, netip.Prefix.Compare)
	slices.SortFunc(fw.Local, netip.Addr.Compare)
	fw.Own = append(fw.Own, c.judged()...)
	slices.SortFunc(fw.Own, netip.Prefix.Compare)
	fw.Sources, fw.ExceptBy = c.sources()
	fw.Masqueraded = c.masqueraded(fw.Sources)
	for _, p := range ports {
		if p.Proxy != ProxyAll {
			fw.Forwards = append(fw.Forwards, p.Forward)
		}
	}
	fw.Proxied = Listeners(ports)
	return fw
}

// internal lists the bridges of all internal networks, those of Docker's that do
// not concern us otherwise, too: from none of them anything comes to ours.
func (c *compute) internal() []string {
	var out []string
	for _, n := range c.in.Networks {
		if n.Internal && n.Bridge != "" {
			out = append(out, n.Bridge)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// insideLinks lists the names of all container bridges, and the loopback where
// programs of the host have addresses.
func (c *compute) insideLinks() []string {
	var out []string
	for _, b := range c.bridges() {
		out = append(out, b.Name)
	}
	if slices.ContainsFunc(c.nets, func(n model.Network) bool { return n.Local }) {
		out = append(out, loopback)
	}
	slices.Sort(out)
	return out
}

// masqueraded lists what never leaves the host with its own address. A pin
// counts where its network has no masquerade, too: of a pinned container only
// the NIC's address is seen, at excepted destinations that of the way there.
func (c *compute) masqueraded(sources []Source) []netip.Prefix {
	var out, bare []netip.Prefix
	for _, n := range c.nets {
		for _, s := range n.Subnets() {
			switch {
			case n.Stock:
			case n.NoMasquerade:
				bare = append(bare, s.Prefix)
			default:
				out = append(out, s.Prefix)
			}
		}
	}
	if len(bare) > 0 {
		for _, s := range sources {
			if s.Verdict == Pinned && slices.ContainsFunc(bare, func(p netip.Prefix) bool { return p.Contains(s.Addr) }) {
				out = append(out, netip.PrefixFrom(s.Addr, s.Addr.BitLen()))
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// judged lists the addresses on watched bridges that the guard looks at: the
// pinned ones and the held ones. Their neighbours are nobody's business.
func (c *compute) judged() []netip.Prefix {
	var out []netip.Prefix
	for i, e := range c.in.Endpoints {
		n := c.networks[e.NetworkID]
		if !n.Stock || c.strict[n.ID] || !c.concerns(i) {
			continue
		}
		for _, f := range model.Families {
			if a, ok := e.Addr(f); ok {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return out
}

// sources lists what becomes of each container address, and its exceptions.
// Those of which the kernel may know more than we do, before Docker has said
// anything, are left out, and so are those on a network that the state has lost:
// they go on as the kernel has them.
func (c *compute) sources() ([]Source, []Exception) {
	var out []Source
	except := make(map[netip.Addr][]netip.Prefix)
	for i, e := range c.in.Endpoints {
		n, known := c.networks[e.NetworkID]
		if !known && e.Phase != model.Left {
			continue
		}
		if n.Internal || c.hasNICsAddress(n) {
			continue // nothing of an internal network leaves the host, and a NIC's address is the host's
		}
		p := c.pins[i]
		for _, f := range model.Families {
			addr, ok := e.Addr(f)
			if !ok {
				continue
			}
			s := Source{Addr: addr, Stock: n.Stock}
			switch p.State {
			case StatePinned:
				s.Verdict, s.NIC, s.NICName, s.Address = Pinned, c.ids[p.NIC], p.NIC, p.Addr(f)
				if !s.Address.IsValid() || s.NIC == 0 {
					s = Source{Addr: addr, Verdict: Blocked, Stock: n.Stock}
					break
				}
				except[addr] = p.Except
			case StateUnpinned:
				if n.Stock && !c.strict[n.ID] {
					continue
				}
				s.Verdict = ViaHost
			case StatePending:
				if c.mayBePinned(e) {
					continue
				}
				s.Verdict = Pending
			default:
				s.Verdict = Blocked
			}
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Source) int { return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Verdict, b.Verdict)) })
	// Two endpoints with one address happen while a tombstone waits; a live
	// one of a lower verdict (pinned, via host, pending, blocked) stands.
	out = slices.CompactFunc(out, func(a, b Source) bool { return a.Addr == b.Addr })
	var exceptions []Exception
	for _, s := range out {
		for _, to := range except[s.Addr] {
			if model.FamilyOf(to.Addr()) == model.FamilyOf(s.Addr) {
				exceptions = append(exceptions, Exception{s.Addr, to})
			}
		}
	}
	return out, exceptions
}

// hostReplies reports whether host services answer by the NIC: a secondary one
// that somebody named. The primary's host sockets are never touched (an
// administrator's session may come by a VPN or a static route).
func (c *compute) hostReplies(n model.NIC) bool {
	return !n.Primary && c.asked[n.Name] == byName && c.in.Settings.HostReplies != RepliesOff
}

// sysctls lists the switches that have to be other than strict:
//   - rp_filter 1 (strict) drops what comes in by one NIC while main's route
//     back is by another; 2 (loose) does not. The kernel uses the higher one
//     of "all" and the interface's: with 1 for all, an interface's 0 is strict.
//     The way back to a container is looked up as if it had come from its bridge,
//     without a mark: on a locked bridge that leads nowhere, so there it counts
//     for every NIC that the host routes by.
//   - ip_forward, where neither Docker nor anybody else switched it on. Docker
//     goes first: where it does so itself it also sets FORWARD to DROP.
//   - arp_ignore 1, arp_announce 2 where two NICs share a subnet: each answers
//     ARP for its own addresses only. Not where an address of that subnet is on
//     another device (a virtual service's on lo), which nobody would answer for then.
//   - IPv6 forwarding: see forwarding6.
//   - route_localnet on bridges of ours while a port is published on the host's
//     loopback: the host's own packets go there with a source of 127.0.0.1. What
//     a container sends to 127.0.0.0/8 is dropped by the firewall.
func (c *compute) sysctls(ports []Port) []Sysctl {
	var s []Sysctl
	// Where Docker found it on already, its bridges depend on our having done so.
	dependents := c.in.Host.ForwardingOurs && len(c.in.Host.Bridges) > 0
	forwards := slices.ContainsFunc(c.nets, func(n model.Network) bool { return !n.Local })
	if c.in.DockerUp && forwards || dependents {
		s = append(s, Sysctl{Path: "net/ipv4/ip_forward", From: []string{"0"}, Value: "1"})
	}
	conf := func(dev, key string, value string, from ...string) {
		s = append(s, Sysctl{Path: "net/ipv4/conf/" + dev + "/" + key, From: from, Value: value})
	}
	strict := []string{"1"}
	if c.in.Host.Sysctls["net/ipv4/conf/all/rp_filter"] == "1" {
		strict = append(strict, "0")
	}
	for _, n := range c.nets {
		if !n.Stock && !n.Local {
			conf(n.Bridge, "rp_filter", "2", strict...)
		}
	}
	for _, bridge := range c.onLoopback(ports) {
		conf(bridge, "route_localnet", "1", "0")
	}
	locked := slices.ContainsFunc(c.nets, func(n model.Network) bool { return !n.Local && (!n.Stock || c.strict[n.ID]) })
	for _, n := range c.in.Host.NICs {
		if locked && (n.Primary || len(n.Routes) > 0) || slices.ContainsFunc(c.managed, func(m model.NIC) bool { return m.Name == n.Name }) {
			conf(n.Name, "rp_filter", "2", strict...)
		}
	}
	for _, n := range c.managed {
		if c.sharesSubnet(n) && !c.servesOthers(n) {
			conf(n.Name, "arp_ignore", "1", "0")
			conf(n.Name, "arp_announce", "2", "0", "1")
		}
	}
	s = append(s, c.forwarding6()...)
	slices.SortFunc(s, func(a, b Sysctl) int { return cmp.Compare(a.Path, b.Path) })
	return s
}

// forwarding6 switches IPv6 forwarding on for a network of ours that has IPv6;
// for its own networks Docker does. A host that forwards is a router, and takes
// no advice of routers any more where accept_ra is 1: the kernel then forgets
// the default routes that it has from them. With 2 it goes on as before.
// Where somebody else switched forwarding on, that has happened already.
func (c *compute) forwarding6() []Sysctl {
	host := c.in.Host
	ours := slices.ContainsFunc(c.nets, func(n model.Network) bool { return !n.Stock && n.Subnet6.IsValid() })
	// Where Docker found it on already, its bridges depend on our having done so.
	dependents := host.Forwarding6Ours && slices.ContainsFunc(c.bridges(), func(b model.Bridge) bool {
		return slices.ContainsFunc(b.Subnets, func(s model.Subnet) bool { return s.Prefix.Addr().Is6() })
	})
	elsewhere := host.Sysctls[Forwarding6] == "1" && !host.Forwarding6Ours
	if elsewhere || !dependents && (!ours || !c.in.DockerUp) {
		return nil
	}
	s := []Sysctl{{Path: Forwarding6, From: []string{"0"}, Value: "1"}}
	for _, l := range host.Advertised {
		s = append(s, Sysctl{Path: "net/ipv6/conf/" + l + "/accept_ra", From: []string{"1"}, Value: "2"})
	}
	return s
}

// onLoopback lists the bridges behind which a port is published on 127.0.0.1, be
// it as one of all addresses.
func (c *compute) onLoopback(ports []Port) []string {
	endpoints := make(map[string]bool)
	for _, p := range ports {
		if a := p.Forward.Addr; a.Is4() && (a.IsLoopback() || a.IsUnspecified()) {
			endpoints[p.Endpoint] = true
		}
	}
	var bridges []string
	for _, e := range c.in.Endpoints {
		if n := c.networks[e.NetworkID]; endpoints[e.ID] && !n.Local {
			bridges = append(bridges, n.Bridge)
		}
	}
	slices.Sort(bridges)
	return slices.Compact(bridges)
}

// servesOthers reports whether the host bears an address of the NIC's subnets
// that is no NIC's.
func (c *compute) servesOthers(n model.NIC) bool {
	return slices.ContainsFunc(c.in.Host.Locals, func(a netip.Addr) bool {
		inside := slices.ContainsFunc(n.Addrs, func(p netip.Prefix) bool { return p.Contains(a) })
		return inside && !slices.ContainsFunc(c.in.Host.NICs, func(o model.NIC) bool { return o.Has(a) })
	})
}

func (c *compute) sharesSubnet(n model.NIC) bool {
	for _, o := range c.in.Host.NICs {
		if o.Name == n.Name {
			continue
		}
		for _, a := range n.Addrs {
			for _, b := range o.Addrs {
				if a.Addr().Is4() && a.Overlaps(b) {
					return true
				}
			}
		}
	}
	return false
}
