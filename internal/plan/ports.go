package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// ports lists the published ports whose address is decided. Where Docker has two
// networks of one container publish the same, as it does when IPv4 and IPv6 have
// different gateways and it does not tell which is whose, the first has it.
func (c *compute) ports() []Port {
	type place struct {
		container string
		proto     model.Proto
		addr      netip.Addr
		port      uint16
	}
	on := make(map[place]string) // networks
	var ports []Port
	for i, e := range c.in.Endpoints {
		n := c.networks[e.NetworkID]
		if n.Stock || n.Local && c.joined(n) {
			continue // Docker's own business, or a program's
		}
		for _, p := range c.forwards(e, c.pins[i]) {
			f := p.Forward
			at := place{e.Container.ID, f.Proto, f.Addr, f.Port}
			if n := on[at]; at.container != "" && n != "" && n != e.NetworkID {
				continue
			}
			on[at] = e.NetworkID
			ports = append(ports, p)
		}
	}
	nat := make(map[Listener]bool)
	for _, p := range ports {
		if f := p.Forward; p.Proxy != ProxyAll {
			nat[Listener{f.Addr, f.Proto, f.Port}] = true
		}
	}
	ports = slices.DeleteFunc(ports, func(p Port) bool {
		return p.Yields && nat[Listener{p.Forward.Addr, p.Forward.Proto, p.Forward.Port}]
	})
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(compareForwards(a.Forward, b.Forward), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return ports
}

// spare lists the ports of endpoints that are not decided yet, which is all that
// have said nothing while Docker's API is away: nobody else should take them
// meanwhile. They are where they will be as far as that is known, and give way to
// everything that is published.
func (c *compute) spare(ports []Port) []Port {
	type place struct {
		proto model.Proto
		port  uint16
	}
	taken := make(map[place][]netip.Addr)
	take := func(f Forward) { taken[place{f.Proto, f.Port}] = append(taken[place{f.Proto, f.Port}], f.Addr) }
	for _, p := range ports {
		take(p.Forward)
	}
	var out []Port
	for i, e := range c.in.Endpoints {
		n, p := c.networks[e.NetworkID], c.pins[i]
		if n.Stock || n.Local || e.Phase != model.Joined || p.State != StatePending || p.Leaving {
			continue
		}
		p.State = StateUnpinned
		if nic, addr, err := c.in.Host.Resolve(p.Selector, c.in.Settings.EIPs); err == nil && !p.Selector.IsZero() {
			p.State = StatePinned
			p.use(e, nic, addr, netip.Addr{})
		}
		for _, port := range c.forwards(e, p) {
			f := port.Forward
			clash := func(a netip.Addr) bool { return overlap(a, f.Addr) }
			if !slices.ContainsFunc(taken[place{f.Proto, f.Port}], clash) {
				out = append(out, Port{Endpoint: e.ID, Forward: f})
				take(f)
			}
		}
	}
	slices.SortFunc(out, func(a, b Port) int { return compareForwards(a.Forward, b.Forward) })
	return out
}

// overlap reports whether the same port cannot be had on both addresses.
func overlap(a, b netip.Addr) bool {
	return model.FamilyOf(a) == model.FamilyOf(b) && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// joined reports whether a program runs that has the ports of a host entry.
func (c *compute) joined(n model.Network) bool {
	return slices.ContainsFunc(c.in.Endpoints, func(e model.Endpoint) bool {
		return e.As == n.Name && e.Phase == model.Joined && len(e.Publishes) > 0
	})
}

// forwards turns an endpoint's publishes into ports. Where no host address
// was given, a pinned endpoint is published on its NIC's address only, an
// unpinned one on every local address, as on Docker's bridge. Nothing is
// published for an endpoint that is held, whose address is not decided yet; one
// that is about to be unpinned keeps what it has, though it cannot answer yet.
func (c *compute) forwards(e model.Endpoint, p Pin) []Port {
	if p.State != StatePinned && p.State != StateUnpinned && !p.Leaving {
		return nil
	}
	var out []Port
	for _, pub := range e.Publishes {
		for _, f := range model.Families {
			inside, ok := e.Addr(f)
			proxy, yields := NoProxy, false
			if !ok && f == model.IPv6 && c.proxied(e, pub.Proto) {
				inside, ok, proxy = e.Addr4, true, ProxyAll
			}
			if !ok || p.State == StatePinned && !p.Addr(model.FamilyOf(inside)).IsValid() {
				continue // held in this family: nothing could be answered
			}
			var outside netip.Addr
			switch {
			case pub.HostIP.IsValid() && model.FamilyOf(pub.HostIP) != f:
				continue
			case pub.HostIP.IsValid():
				outside = pub.HostIP
			case p.State == StatePinned && proxy == ProxyAll:
				outside, yields = p.Listen6, true
			case p.State == StatePinned:
				outside = p.Addr(f)
			case f == model.IPv6:
				outside = netip.IPv6Unspecified()
			default:
				outside = netip.IPv4Unspecified()
			}
			switch {
			case !outside.IsValid():
				continue // the NIC has none
			case outside == netip.IPv6Loopback():
				proxy = ProxyAll
			case outside == netip.IPv6Unspecified() && proxy == NoProxy && pub.Proto != model.SCTP:
				proxy = ProxyLoopback
			}
			out = append(out, Port{
				Endpoint: e.ID, Proxy: proxy, Yields: yields,
				Forward: Forward{Proto: pub.Proto, Addr: outside, Port: pub.HostPort, To: netip.AddrPortFrom(inside, pub.Port)},
			})
		}
	}
	return out
}

// Listeners are those of the ports that a proxy alone has, but for ::1; sorted.
func Listeners(ports []Port) []Listener {
	var out []Listener
	for _, p := range ports {
		if f := p.Forward; p.Proxy == ProxyAll && !f.Addr.IsLoopback() {
			out = append(out, Listener{f.Addr, f.Proto, f.Port})
		}
	}
	slices.SortFunc(out, func(a, b Listener) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}

// proxied reports whether what comes for the endpoint over IPv6 is taken to its
// IPv4 address: as on Docker's bridge, where its container has no IPv6 by which
// anything could come.
func (c *compute) proxied(e model.Endpoint, proto model.Proto) bool {
	n := c.networks[e.NetworkID]
	return c.in.Host.IPv6 && !n.Stock && !n.Local && proto != model.SCTP && e.Addr4.IsValid() &&
		!slices.ContainsFunc(c.in.Endpoints, func(o model.Endpoint) bool {
			return o.Container.ID == e.Container.ID && o.Container.ID != "" && o.Phase != model.Left && o.Addr6.IsValid() && !c.networks[o.NetworkID].Internal
		})
}

func compareForwards(a, b Forward) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), a.To.Compare(b.To))
}
