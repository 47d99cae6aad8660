package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// flushStale forgets connections of containers that began when they left by
// another way than now: while no daemon ran, or one that died before it had
// forgotten them, or while somebody had taken the tables away. A connection
// keeps the source address that it began with. What is translated as it would
// be now goes on. Those of containers that are gone are forgotten, too, where a
// pin had given them their address: what the kernel says of them to the other
// side would bear it, and leave as the host routes.
func (l *Loop) flushStale(ctx context.Context, res *Result) error {
	pins, host := res.ways()
	gone := res.gone(l.inherited)
	stale := func(from, to, as netip.Addr) bool {
		if as == from { // begun while nothing was translated
			_, pinned := pins[from]
			return (pinned || host[from] && res.masqueraded(from)) && !res.inside(to) && !slices.Contains(res.Host.Locals, to)
		}
		if res.inside(as) {
			return false
		}
		pin, pinned := pins[from]
		switch {
		case (pinned || host[from]) && res.excepted(from, to):
			return res.ofNIC(as) && !res.byHost(to, as)
		case pinned:
			return as != pin
		case host[from]:
			return !res.byHost(to, as)
		}
		return gone(from) && !res.byHost(to, as) && !slices.Contains(res.Host.Locals, from) // gateways are claimed, too
	}
	if _, err := l.o.Host.FlushTranslated(ctx, stale); err != nil {
		return fmt.Errorf("flushing flows that leave otherwise now: %w", err)
	}
	return nil
}

// ways tells the addresses that pinned containers leave with, and which
// containers follow the host's routing: those on our networks and strict ones,
// those that have failed over to it, and those that will when what they have
// begun by a NIC is forgotten.
func (r *Result) ways() (pins map[netip.Addr]netip.Addr, host map[netip.Addr]bool) {
	pins, host = make(map[netip.Addr]netip.Addr), make(map[netip.Addr]bool)
	for _, s := range r.Desired.Firewall.Sources {
		switch s.Verdict {
		case plan.Pinned:
			pins[s.Addr] = s.Address
		case plan.ViaHost:
			host[s.Addr] = true
		}
	}
	for i, p := range r.Desired.Pins {
		if p.State == plan.StateUnpinned && p.InsteadOf != "" || p.Leaving {
			host[r.Endpoints[i].Addr4], host[r.Endpoints[i].Addr6] = true, true
		}
	}
	return pins, host
}

// byHost reports whether the host's routing may give what goes there that
// source address: not one that it has no more, nor a secondary NIC's where main
// has no route by that.
func (r *Result) byHost(to, as netip.Addr) bool {
	for _, n := range r.Host.NICs {
		if n.Has(as) {
			return n.Primary || slices.ContainsFunc(n.Routes, func(r model.Route) bool { return r.Dst.Contains(to) })
		}
	}
	return slices.Contains(r.Host.Locals, as)
}

// gone returns what reports whether an address may have been a pinned
// container's before: an earlier process had it pinned or looked after, or it is one of an
// eipnet or strict network and no endpoint has it now. As long as not all
// endpoints are known, only what one of the known ones has is looked at.
func (r *Result) gone(inherited map[netip.Addr]bool) func(netip.Addr) bool {
	has, known := make(map[netip.Addr]bool), make(map[string]bool)
	for _, n := range r.Networks {
		known[n.ID] = true
	}
	for _, e := range r.Endpoints {
		if known[e.NetworkID] || r.complete { // else it goes on as the kernel has it
			has[e.Addr4], has[e.Addr6] = true, true
		}
	}
	var locked []model.Network
	for _, n := range r.Networks {
		if slices.Contains(r.Desired.Firewall.Locked, n.Bridge) {
			locked = append(locked, n)
		}
	}
	return func(a netip.Addr) bool {
		_, before := inherited[a]
		if has[a] || !r.complete {
			return has[a] && before
		}
		return before || slices.ContainsFunc(locked, func(n model.Network) bool { return n.Subnet4.Contains(a) || n.Subnet6.Contains(a) })
	}
}

// masqueraded reports whether nothing leaves the host with this address.
func (r *Result) masqueraded(a netip.Addr) bool {
	return slices.ContainsFunc(r.Desired.Firewall.Masqueraded, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ofNIC reports whether it is an address of a NIC.
func (r *Result) ofNIC(a netip.Addr) bool {
	return slices.ContainsFunc(r.Host.NICs, func(n model.NIC) bool { return n.Has(a) })
}

// excepted reports whether what the container sends there follows the host's routing.
func (r *Result) excepted(from, to netip.Addr) bool {
	fw := r.Desired.Firewall
	return slices.ContainsFunc(fw.Except, func(p netip.Prefix) bool { return p.Contains(to) }) ||
		slices.ContainsFunc(fw.ExceptBy, func(e plan.Exception) bool { return e.Source == from && e.To.Contains(to) })
}

// inside reports whether an address is in a container network's subnet: what
// has it as its source goes to a container, and not out of the host.
func (r *Result) inside(a netip.Addr) bool {
	for _, n := range r.Networks {
		if n.Subnet4.Contains(a) || n.Subnet6.Contains(a) {
			return true
		}
	}
	for _, b := range r.Host.Bridges {
		for _, s := range b.Subnets {
			if s.Prefix.Contains(a) {
				return true
			}
		}
	}
	return false
}
