package reconcile_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// simRouter applies rules and routes one by one, in route.Manager's order.
type simRouter struct{ *daemon }

func (r simRouter) Apply(_ context.Context, want plan.Routing, prune bool) (bool, error) {
	return r.apply(func(a *applying) {
		a.addRoutes(want.Routes, prune)
		have := slices.SortedFunc(maps.Keys(a.kernel.rules), func(a, b plan.Rule) int { return orderRules(b, a) })
		for _, rule := range slices.SortedFunc(slices.Values(want.Rules), orderRules) {
			a.want("a rule", !a.kernel.rules[rule], func() { a.kernel.rules[rule] = true })
		}
		if !prune {
			return
		}
		for _, rule := range have {
			a.want("a rule", !slices.Contains(want.Rules, rule), func() { delete(a.kernel.rules, rule) })
		}
		for _, rt := range slices.SortedFunc(maps.Keys(a.kernel.routes), func(a, b plan.Route) int { return orderRoutes(b, a) }) {
			a.want("a route", !slices.Contains(want.Routes, rt), func() { delete(a.kernel.routes, rt) })
		}
	})
}

// NICIDs are those of the tables' default routes.
func (r simRouter) NICIDs() (map[string]model.NICID, error) {
	ids := make(map[string]model.NICID)
	r.do(func() {
		for rt := range r.kernel.routes {
			if rt.Dev != "" && rt.Dst.Bits() == 0 && rt.Table > model.TableInside && rt.Table < model.TableNull {
				ids[rt.Dev] = model.NICID(rt.Table - model.TableInside)
			}
		}
	})
	return ids, nil
}

func (a *applying) addRoutes(want []plan.Route, prune bool) {
	k := a.kernel
	// Without prune only a route by the same NIC, in its own table, is replaced.
	kept := func(rt plan.Route) bool {
		for o := range k.routes {
			if slot(o) == slot(rt) && (o.Dev != rt.Dev || rt.Table == model.TableInside || rt.Table == model.TableNull) {
				return true
			}
		}
		return false
	}
	for _, rt := range slices.SortedFunc(slices.Values(want), orderRoutes) {
		l := k.links[rt.Dev]
		switch up := rt.Unreachable || l != nil && l.up; {
		case k.routes[rt] || !prune && kept(rt):
		case !up && rt.Dev == model.NullDevice:
			a.errs = append(a.errs, errors.New("no null device"))
		case !up:
			a.errs = append(a.errs, errLink)
		default:
			a.want("a route", true, func() {
				maps.DeleteFunc(k.routes, func(o plan.Route, _ bool) bool { return slot(o) == slot(rt) })
				k.routes[rt] = true
			})
		}
	}
}

// orderRules and orderRoutes are the order of adding, as internal/route has it.
func orderRules(a, b plan.Rule) int {
	late := func(r plan.Rule) int {
		if r.Priority >= model.PriorityLocked && r.Priority <= model.PriorityLast {
			return -r.Priority
		}
		return r.Priority
	}
	return cmp.Or(cmp.Compare(late(a), late(b)), cmp.Compare(a.Family, b.Family), a.From.Compare(b.From), cmp.Compare(a.Iif, b.Iif), cmp.Compare(a.Mark, b.Mark))
}

func orderRoutes(a, b plan.Route) int {
	return cmp.Or(-cmpBool(a.Unreachable, b.Unreachable), cmp.Compare(b.Dst.Bits(), a.Dst.Bits()), cmp.Compare(a.Family, b.Family),
		cmp.Compare(a.Table, b.Table), a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Dev, b.Dev))
}

// slot is what the kernel takes for the same route.
func slot(r plan.Route) plan.Route {
	return plan.Route{Family: r.Family, Table: r.Table, Dst: r.Dst, Metric: r.Metric}
}

func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// simFirewall applies the table in one transaction.
type simFirewall struct{ *daemon }

func (f simFirewall) Apply(_ context.Context, fw plan.Firewall, prune bool) (bool, error) {
	return f.apply(func(a *applying) {
		k := a.kernel
		if k.table != nil && !prune {
			fw = keep(fw, *k.table)
		}
		switch same := k.table != nil && equal(*k.table, fw); {
		case same:
		case a.faults.table:
			a.errs = append(a.errs, errFault)
		default:
			a.want("table inet", true, func() { k.table = &fw })
		}
	})
}

// keep adds to a firewall what the table has, so that nothing is taken away.
func keep(fw, have plan.Firewall) plan.Firewall {
	fw.NICs = join(fw.NICs, have.NICs, func(n plan.FirewallNIC) any { return n.ID })
	fw.Uplinks = join(fw.Uplinks, have.Uplinks, func(u plan.Uplink) any { return u })
	for _, l := range []struct{ to, from *[]string }{
		{&fw.Locked, &have.Locked},
		{&fw.Watched, &have.Watched},
		{&fw.Ours, &have.Ours},
		{&fw.Inside, &have.Inside},
		{&fw.Internal, &have.Internal},
		{&fw.Apart, &have.Apart},
	} {
		*l.to = join(*l.to, *l.from, func(s string) any { return s })
	}
	for _, l := range []struct{ to, from *[]netip.Prefix }{{&fw.Own, &have.Own}, {&fw.OurSubnets, &have.OurSubnets}, {&fw.Masqueraded, &have.Masqueraded}, {&fw.Except, &have.Except}} {
		*l.to = join(*l.to, *l.from, func(p netip.Prefix) any { return p })
	}
	fw.NoForward = join(fw.NoForward, have.NoForward, func(f model.Family) any { return f })
	fw.Sources = join(fw.Sources, have.Sources, func(s plan.Source) any { return s.Addr })
	fw.ExceptBy = join(fw.ExceptBy, have.ExceptBy, func(e plan.Exception) any { return e })
	fw.Forwards = join(fw.Forwards, have.Forwards, func(f plan.Forward) any { return reservation{f.Proto, f.Addr, f.Port} })
	return fw
}

func join[T any](mine, have []T, key func(T) any) []T {
	known := make(map[any]bool)
	for _, v := range mine {
		known[key(v)] = true
	}
	out := slices.Clone(mine)
	for _, v := range have {
		if !known[key(v)] {
			out = append(out, v)
		}
	}
	return out
}

func (f simFirewall) Claimed() (out []netip.Addr, err error) {
	f.do(func() {
		for _, p := range f.kernel.spoof {
			out = append(out, p.Addrs...)
		}
	})
	return out, nil
}

func (f simFirewall) Pinned() (out []netip.Addr, err error) {
	f.do(func() {
		if f.kernel.table == nil {
			return
		}
		for _, s := range f.kernel.table.Sources {
			if s.Verdict == plan.Pinned {
				out = append(out, s.Addr)
			}
		}
	})
	return out, nil
}

func (f simFirewall) ApplyBridge(_ context.Context, ports []plan.BridgePort, prune bool) (bool, error) {
	return f.apply(func(a *applying) {
		if !prune {
			ports = join(ports, a.kernel.spoof, func(p plan.BridgePort) any { return p.Name })
		}
		a.want("table bridge", !equal(a.kernel.spoof, ports), func() { a.kernel.spoof = ports })
	})
}

// ClaimBridge lets no other port bear an address that one bears.
func (f simFirewall) ClaimBridge(ctx context.Context, ports []plan.BridgePort) (bool, error) {
	var have []plan.BridgePort
	f.do(func() { have = f.kernel.spoof })
	return f.ApplyBridge(ctx, withheld(ports, have), false)
}

func withheld(ports, have []plan.BridgePort) []plan.BridgePort {
	out := slices.Clone(ports)
	for i, p := range out {
		out[i].Addrs = slices.DeleteFunc(slices.Clone(p.Addrs), func(a netip.Addr) bool {
			mine := slices.ContainsFunc(have, func(h plan.BridgePort) bool { return h.Name == p.Name && slices.Contains(h.Addrs, a) })
			return !mine && slices.ContainsFunc(have, func(h plan.BridgePort) bool { return slices.Contains(h.Addrs, a) })
		})
	}
	return out
}

// simForwarding are the accepts in Docker's chain.
type simForwarding struct{ *daemon }

func (f simForwarding) Apply(_ context.Context, bridges []string) (reconcile.ForwardingOutcome, error) {
	changed, err := f.apply(func(a *applying) {
		a.want("accepts", !slices.Equal(a.kernel.accepts, bridges), func() { a.kernel.accepts = slices.Clone(bridges) })
	})
	return reconcile.ForwardingOutcome{Changed: changed}, err
}

// simPorts are the sockets of one daemon, which die with it.
type simPorts struct{ *daemon }

func (p simPorts) Set(want []plan.Port) map[plan.Port]error {
	failed := make(map[plan.Port]error)
	p.do(func() {
		now := make(map[plan.Port]bool)
		held := make(map[reservation]bool)
		// Who had it before goes first.
		order := slices.SortedStableFunc(slices.Values(want), func(a, b plan.Port) int { return -cmpBool(p.ports[a], p.ports[b]) })
		for _, port := range order {
			f := port.Forward
			clash := func(r reservation) bool {
				return r.proto == f.Proto && r.port == f.Port && model.FamilyOf(r.addr) == model.FamilyOf(f.Addr) && (r.addr == f.Addr || r.addr.IsUnspecified() || f.Addr.IsUnspecified())
			}
			if slices.ContainsFunc(slices.Collect(maps.Keys(held)), clash) || slices.ContainsFunc(slices.Collect(maps.Keys(p.kernel.foreign)), clash) {
				failed[port] = errors.New("port is already allocated")
				continue
			}
			held[reservation{f.Proto, f.Addr, f.Port}], now[port] = true, true
		}
		p.ports = now
	})
	return failed
}

func (p simPorts) Serve() error { return nil }

// simVeths makes and deletes endpoints' links.
type simVeths struct{ *daemon }

func (v simVeths) AddVeth(_ context.Context, w driver.Veth) (err error) {
	v.pause()
	v.do(func() {
		if v.kernel.links[w.Bridge] == nil {
			err = fmt.Errorf("no such bridge %s", w.Bridge)
			return
		}
		if l := v.kernel.links[w.Host]; l == nil || l.master != w.Bridge {
			err = v.write("veth "+w.Host, func() {
				v.kernel.add(w.Host, simLink{kind: "veth", alias: w.Alias, master: w.Bridge, mac: w.MAC, up: true})
			})
		}
	})
	return err
}

func (v simVeths) DeleteLink(_ context.Context, name string) (err error) {
	v.pause()
	v.do(func() {
		if v.kernel.links[name] != nil {
			err = v.write("veth "+name, func() { v.kernel.remove(name) })
		}
	})
	return err
}

func (v simVeths) FlushConntrack(ctx context.Context, addrs []netip.Addr) (int, error) {
	return simHost(v).FlushConntrack(ctx, addrs)
}

func equal[T any](a, b T) bool { return reflect.DeepEqual(a, b) }
