package reconcile_test

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// elsewhere is a destination that no route but a default one leads to.
var elsewhere = netip.MustParseAddr("203.0.113.9")

// exit is how a packet leaves the host; zero: it does not.
type exit struct {
	nic     string
	address netip.Addr
}

func (x exit) String() string {
	if x == (exit{}) {
		return "nowhere"
	}
	return x.nic + " as " + x.address.String()
}

// send has a container begin a connection to the world by one of its networks,
// and follows it through marks, rules, tables, NAT and guard, as the kernel's
// skeleton (snat) has them.
func (k *kernel) send(a *attachment) exit {
	bridge, from := a.network.bridge, a.addr
	if l := k.links[a.port()]; l == nil || l.master != bridge || k.spoofed(a.port(), from) {
		return exit{}
	}
	mark, source := k.mark(bridge, from)
	if source != nil && (source.Verdict == plan.Pending || source.Verdict == plan.Blocked) {
		return exit{}
	}
	nic := k.route(bridge, from, mark)
	l := k.links[nic]
	if nic == "" || nic == model.NullDevice || l == nil || l.kind != "nic" {
		return exit{}
	}
	out := exit{nic, k.translate(nic, from, source, !a.network.ours)}
	if k.table == nil {
		return out
	}
	judged := slices.ContainsFunc(k.table.Own, func(p netip.Prefix) bool { return p.Contains(from) })
	legit := source != nil && (source.Verdict == plan.ViaHost || source.NICName == nic && source.Address == out.address)
	if judged && !legit {
		return exit{}
	}
	return out
}

// spoofed is what table bridge eipnet drops: addresses of which it is said that
// they belong behind another port.
func (k *kernel) spoofed(port string, from netip.Addr) bool {
	elsewhere := false
	for _, p := range k.spoof {
		switch has := slices.Contains(p.Addrs, from); {
		case p.Name == port && has:
			return false
		case p.Name == port && p.Only, has:
			elsewhere = true
		}
	}
	return elsewhere
}

// mark is what chain mark-pre sets, and the source that it knows.
func (k *kernel) mark(bridge string, from netip.Addr) (model.Mark, *plan.Source) {
	if k.table == nil || !slices.Contains(k.table.Locked, bridge) && !slices.Contains(k.table.Watched, bridge) {
		return 0, nil
	}
	i := slices.IndexFunc(k.table.Sources, func(s plan.Source) bool { return s.Addr == from })
	if i < 0 {
		return 0, nil
	}
	s := &k.table.Sources[i]
	switch s.Verdict {
	case plan.Pinned:
		return k.table.Mask.Of(s.NIC), s
	case plan.ViaHost:
		return k.table.Mask.ViaHost(), s
	}
	return 0, s
}

// route walks the ip rules; main comes behind all of ours.
func (k *kernel) route(bridge string, from netip.Addr, mark model.Mark) string {
	next := 0
	for _, r := range slices.SortedFunc(maps.Keys(k.rules), func(a, b plan.Rule) int { return cmp.Compare(a.Priority, b.Priority) }) {
		switch {
		case r.Family != model.IPv4, r.Priority < next, r.Iif != "" && r.Iif != bridge, r.Mask != 0 && mark&model.Mark(r.Mask) != r.Mark,
			r.From.IsValid() && !r.From.Contains(from):
			continue
		case r.Action == plan.Goto:
			next = r.Target
			continue
		case r.Action == plan.Nop:
			continue
		}
		if rt, ok := k.lookup(r.Table); ok {
			return rt.Dev
		}
	}
	return k.primary()
}

// lookup finds the best route to the world in a table of ours.
func (k *kernel) lookup(table model.Table) (best plan.Route, found bool) {
	for r := range k.routes {
		if r.Table != table || r.Family != model.IPv4 || !r.Dst.Contains(elsewhere) {
			continue
		}
		if !found || cmp.Or(cmp.Compare(best.Dst.Bits(), r.Dst.Bits()), cmp.Compare(r.Metric, best.Metric)) < 0 {
			best, found = r, true
		}
	}
	return best, found
}

// translate is source NAT: by map, else masquerade, ours or Docker's.
func (k *kernel) translate(nic string, from netip.Addr, s *plan.Source, stock bool) netip.Addr {
	if s != nil && s.Verdict == plan.Pinned && s.NICName == nic {
		return s.Address
	}
	masqueraded := stock || k.table != nil && slices.ContainsFunc(k.table.Masqueraded, func(p netip.Prefix) bool { return p.Contains(from) })
	if l := k.links[nic]; masqueraded && len(l.addrs) > 0 {
		return l.addrs[0].Addr()
	}
	return from
}
