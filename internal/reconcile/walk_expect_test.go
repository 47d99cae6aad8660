package reconcile_test

import (
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// packets has every container send by each of its networks.
func (w *walker) packets() {
	w.do(func() {
		for _, name := range sorted(w.engine.containers) {
			c := w.engine.containers[name]
			for _, a := range c.at {
				out := w.kernel.send(a)
				if out == (exit{}) {
					continue
				}
				switch {
				case w.may(c, a, out):
					w.kernel.flows[flow{a.endpoint, a.addr, out.address}] = true
				case w.broken != [2]bool{true, true}:
					w.t.Errorf("%s (labels %v) on %s, ours %v, options %v: %v leaves by %v; allowed: %v", name, c.labels, a.network.name, a.network.ours, a.network.options, a.addr, out, w.said[c.id])
					w.t.Logf("rebind %v; it is %+v; sources %+v; on disk %+v", w.disk.rebinds[c.id], *a, w.kernel.table.Sources, w.disk.endpoints)
				}
			}
		}
	})
}

// may reports whether a packet may leave so, whatever is under way.
func (w *walker) may(c *dockerContainer, a *attachment, out exit) bool {
	if a.blind || !a.network.ours && (len(a.network.options) == 0 || !a.network.seen) {
		return true // a moment without a pin, or with that of who had the address before; check looks at it
	}
	l := w.kernel.links[out.nic]
	if l == nil || !slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == out.address }) && !w.had(out) {
		return false
	}
	return slices.Contains(w.said[c.id], out.nic) || slices.Contains(w.ways(c), out.nic) || slices.Contains(w.waysBy(c, c.ours()), out.nic)
}

// ours are the endpoints that the daemon knows of itself: before Docker has
// answered nobody tells what other networks say.
func (c *dockerContainer) ours() []*attachment {
	return slices.DeleteFunc(slices.Clone(c.at), func(a *attachment) bool { return !a.network.ours })
}

// had reports whether the NIC had the address before: until the next pass what
// is pinned to it still leaves with it.
func (w *walker) had(out exit) bool {
	return slices.Contains(formerAddrs, out.address) && out.nic != ""
}

// formerAddrs are the addresses that NICs get in the walk.
var formerAddrs = []netip.Addr{
	netip.MustParseAddr("172.31.0.8"), netip.MustParseAddr("172.31.0.14"), netip.MustParseAddr("172.31.0.15"), netip.MustParseAddr("10.9.0.21"), netip.MustParseAddr("10.9.0.22"),
}

// decision is what is said of a container. The sim is locked.
func (w *walker) decision(c *dockerContainer, at []*attachment) (model.Decision, error) {
	said := model.Said{Labels: c.labels, Rebind: w.disk.rebinds[c.id].Options}
	for _, a := range at {
		said.Endpoints = append(said.Endpoints, a.options)
		said.Networks = append(said.Networks, a.network.model())
	}
	return said.Decide()
}

// ways are the NICs that a container may leave by as things stand.
func (w *walker) ways(c *dockerContainer) []string { return w.waysBy(c, c.at) }

func (w *walker) waysBy(c *dockerContainer, at []*attachment) []string {
	d, err := w.decision(c, at)
	switch {
	case err != nil:
		return nil
	case d.Selector.IsZero():
		return []string{w.kernel.primary()}
	}
	out := d.Fallback.NICs()
	if d.Fallback.Host() {
		out = append(out, w.kernel.primary())
	}
	if name := w.named(d.Selector); name != "" {
		out = append(out, name)
	}
	return out
}

// named is the NIC that a selector names now.
func (w *walker) named(s model.Selector) string {
	for _, name := range sorted(w.kernel.links) {
		l := w.kernel.links[name]
		if l.kind != "nic" {
			continue
		}
		switch {
		case s.Kind == model.ByNIC && s.Name == name,
			s.Kind == model.ByIP && slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == s.Addr }):
			return name
		}
	}
	return ""
}

// expected is how a container leaves when all is quiet.
func (w *walker) expected(c *dockerContainer) exit {
	d, err := w.decision(c, c.at)
	if err != nil {
		return exit{}
	}
	if d.Selector.IsZero() {
		return w.leave(w.kernel.primary(), netip.Addr{})
	}
	own := w.named(d.Selector)
	if own != "" && d.Allows(own) != nil {
		return exit{}
	}
	ways := []string{own}
	ways = append(ways, d.Fallback.NICs()...)
	for i, name := range ways {
		if w.works(name) && d.Allows(name) == nil {
			addr := netip.Addr{}
			if i == 0 && d.Selector.Kind == model.ByIP {
				addr = d.Selector.Addr
			}
			return w.leave(name, addr)
		}
	}
	switch {
	case d.Fallback.Host():
		return w.leave(w.kernel.primary(), netip.Addr{})
	case w.kernel.links[own] != nil && w.kernel.links[own].up:
		// Its gateway is silent, or its carrier lost: nothing comes of it, but by its own NIC.
		return w.leave(own, netip.Addr{})
	}
	return exit{}
}

func (w *walker) leave(name string, addr netip.Addr) exit {
	l := w.kernel.links[name]
	if l == nil || len(l.addrs) == 0 {
		return exit{}
	}
	if !addr.IsValid() {
		addr = l.addrs[0].Addr()
	}
	return exit{name, addr}
}

func (w *walker) works(name string) bool {
	l := w.kernel.links[name]
	return l != nil && l.kind == "nic" && l.up && l.carrier && !l.mute && len(l.addrs) > 0
}
