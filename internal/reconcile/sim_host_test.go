package reconcile_test

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// simHost observes and applies links and switches.
type simHost struct{ *daemon }

func (h simHost) Observe(_ context.Context, managed []string) (out model.Host, err error) {
	h.pause()
	h.do(func() {
		k := h.kernel
		out = model.Host{IPv6: true, Sysctls: maps.Clone(k.sysctls)}
		_, out.ForwardingOurs = h.disk.originals["net/ipv4/ip_forward"]
		for _, name := range slices.Sorted(maps.Keys(k.links)) {
			l := k.links[name]
			out.Links = append(out.Links, name)
			for _, p := range l.addrs {
				out.Locals = append(out.Locals, p.Addr())
			}
			switch {
			case l.kind == "nic" && (len(l.addrs) > 0 || slices.Contains(managed, name)):
				out.NICs = append(out.NICs, k.nic(name, slices.Contains(managed, name)))
			case l.kind == "bridge" && l.alias == "":
				out.Bridges = append(out.Bridges, model.Bridge{Name: name, Subnets: []model.Subnet{{Prefix: l.addrs[0].Masked(), Gateway: l.addrs[0].Addr()}}})
			}
		}
	})
	return out, nil
}

// nic is what is seen of a NIC. A gateway that no route names is asked for on
// managed ones only.
func (k *kernel) nic(name string, managed bool) model.NIC {
	l := k.links[name]
	n := model.NIC{Name: name, Index: l.index, MAC: l.mac, Up: l.up, Carrier: l.carrier, Primary: name == k.primary(), Addrs: slices.Clone(l.addrs)}
	if !l.up || len(l.addrs) == 0 {
		return n
	}
	for _, p := range l.addrs {
		n.Routes = append(n.Routes, model.Route{Dst: p.Masked(), Src: p.Addr()})
	}
	if n.Primary || managed {
		n.Gateway4 = model.Gateway{Addr: l.gateway, Source: "route"}
	}
	return n
}

func (h simHost) Peers(_ context.Context, bridges []string) (map[string]string, error) {
	out := make(map[string]string)
	h.do(func() {
		for name, l := range h.kernel.links {
			if l.kind == "veth" && slices.Contains(bridges, l.master) {
				out[name] = l.mac
			}
		}
	})
	return out, nil
}

func (h simHost) Cgroups([]model.Stray) map[string]model.Cgroup { return nil }

func (h simHost) Apply(_ context.Context, links plan.Links, sysctls []plan.Sysctl, prune bool) (bool, error) {
	return h.apply(func(a *applying) {
		a.links(links, prune)
		a.sysctls(sysctls, prune)
	})
}

// applying is one call of an applier.
type applying struct {
	*daemon
	changed bool
	errs    []error
}

// apply does it in one go: things happen between the appliers' calls, and
// death comes between their writes.
func (d *daemon) apply(fn func(*applying)) (changed bool, err error) {
	d.pause()
	a := &applying{daemon: d}
	d.do(func() { fn(a) })
	return a.changed, errors.Join(a.errs...)
}

// want makes one write, if it is needed.
func (a *applying) want(what string, needed bool, fn func()) {
	if !needed {
		return
	}
	if err := a.write(what, fn); err != nil {
		a.errs = append(a.errs, err)
		return
	}
	a.changed = true
}

func (a *applying) links(links plan.Links, prune bool) {
	k := a.kernel
	if links.Null {
		a.want("null device", k.links[model.NullDevice] == nil, func() { k.add(model.NullDevice, simLink{kind: "null", up: true}) })
	}
	for _, b := range links.Bridges {
		l := k.links[b.Name]
		if l == nil && a.faults.links {
			a.errs = append(a.errs, linkError{b.Name})
			continue
		}
		a.want("link "+b.Name, l == nil, func() {
			k.add(b.Name, simLink{kind: "bridge", alias: b.NetworkID, up: true, addrs: b.Addrs})
		})
		a.want("alias of "+b.Name, l != nil && l.alias != b.NetworkID, func() { l.alias = b.NetworkID })
	}
	for _, name := range sorted(k.links) {
		l := k.links[name]
		gone := l.alias != "" && l.kind == "bridge" && !slices.ContainsFunc(links.Bridges, func(b plan.BridgeLink) bool { return b.Name == name })
		a.want("link "+name, prune && (gone || l.kind == "null" && !links.Null), func() { k.remove(name) })
	}
	for _, v := range links.Veths {
		l := k.links[v.Name]
		a.want("master of "+v.Name, l != nil && l.master != v.Bridge && k.links[v.Bridge] != nil, func() { l.master = v.Bridge })
	}
	for _, name := range sorted(k.links) {
		l, in := k.links[name], slices.Contains(links.Grouped, name)
		a.want("group of "+name, in && l.group != model.NICGroup, func() { l.group = model.NICGroup })
		a.want("group of "+name, prune && !in && l.group == model.NICGroup, func() { l.group = 0 })
	}
}

func (a *applying) sysctls(sysctls []plan.Sysctl, prune bool) {
	a.followRenames()
	for _, s := range sysctls {
		now, there := a.kernel.sysctls[s.Path]
		if !there || now == s.Value || !slices.Contains(s.From, now) {
			continue
		}
		if was := now + " " + s.Value + " " + a.kernel.indexOf(s.Path); a.disk.originals[s.Path] != was {
			a.want("disk: original of "+s.Path, true, func() { a.disk.originals[s.Path] = was })
		}
		a.want("sysctl "+s.Path, true, func() { a.kernel.sysctls[s.Path] = s.Value })
	}
	for _, path := range sorted(a.disk.originals) {
		if !prune || slices.ContainsFunc(sysctls, func(s plan.Sysctl) bool { return s.Path == path }) {
			continue
		}
		was := strings.Fields(a.disk.originals[path])
		a.want("sysctl "+path, a.kernel.sysctls[path] == was[1], func() { a.kernel.sysctls[path] = was[0] })
		a.want("disk: original of "+path, true, func() { delete(a.disk.originals, path) })
	}
}

// followRenames finds by its index a link that is remembered by another name.
func (a *applying) followRenames() {
	for _, path := range sorted(a.disk.originals) {
		was := strings.Fields(a.disk.originals[path])
		parts := strings.Split(path, "/")
		for name, l := range a.kernel.links {
			if len(was) == 3 && len(parts) == 5 && strconv.Itoa(l.index) == was[2] && name != parts[3] {
				v := a.disk.originals[path]
				parts[3] = name
				a.want("disk: original of "+path, true, func() {
					delete(a.disk.originals, path)
					a.disk.originals[strings.Join(parts, "/")] = v
				})
			}
		}
	}
}

// indexOf is that of the link that a switch belongs to; empty: none.
func (k *kernel) indexOf(path string) string {
	if parts := strings.Split(path, "/"); len(parts) == 5 && k.links[parts[3]] != nil {
		return strconv.Itoa(k.links[parts[3]].index)
	}
	return ""
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (h simHost) FlushConntrackPorts(context.Context, []netip.AddrPort) (int, error) { return 0, nil }

func (h simHost) FlushConntrack(_ context.Context, addrs []netip.Addr) (n int, err error) {
	h.pause()
	h.do(func() {
		if h.dead {
			err = errDead
			return
		}
		maps.DeleteFunc(h.kernel.flows, func(f flow, _ bool) bool { return slices.Contains(addrs, f.from) })
	})
	return 0, err
}

func (h simHost) FlushTranslated(_ context.Context, stale func(from, to, as netip.Addr) bool) (n int, err error) {
	h.pause()
	h.do(func() {
		if h.dead {
			err = errDead
			return
		}
		maps.DeleteFunc(h.kernel.flows, func(f flow, _ bool) bool { return stale(f.from, elsewhere, f.address) })
	})
	return 0, err
}
