package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// pass looks, decides and applies, in an order in which every step is safe
// should the next one fail: names and bridges first, then ports, then the
// ways out, and the firewall's one transaction last, between what is added to
// the anti-spoofing and what is taken away there. What nobody needs to wait for
// follows in [Loop.after].
func (l *Loop) pass(ctx context.Context) *Result {
	res := &Result{At: time.Now(), PortErrors: make(map[string]error)}
	// Before Docker has told what exists, what we remember may be incomplete:
	// add, but take nothing away.
	view, seen := l.o.Docker.View()
	prune := seen && !view.Incomplete
	res.Seen, res.complete = seen, prune
	res.hard(l.learn(view.Containers))
	l.gather(res, view, seen)

	if err := l.compute(ctx, res, seen); err != nil {
		// Without a view of the host every decision would be a guess: the
		// kernel stays as it is.
		res.hard(err)
		return res
	}
	d := &res.Desired
	step := func(name string, fn func() (bool, error)) error {
		changed, err := fn()
		res.Changed = res.Changed || changed
		if err != nil {
			return fmt.Errorf("applying %s: %w", name, err)
		}
		return nil
	}
	// What cannot be remembered is no reason to refuse a container: all that is written below holds until a restart.
	res.partial(l.rememberLost(res))
	if err := l.o.Store.SetNICIDs(d.IDs); err != nil {
		res.partial(fmt.Errorf("remembering NIC ids: %w", err))
	}
	// One network's bridge that cannot be made is no reason to refuse another's containers.
	res.partial(step("links and sysctls", func() (bool, error) { return l.o.Host.Apply(ctx, d.Links, d.Sysctls, prune) }))
	l.reserve(res)
	misrouted := step("routing", func() (bool, error) { return l.o.Router.Apply(ctx, d.Routing, prune) })
	res.routing(misrouted, l.o.DeviceErrors)
	// A claim stands before the address is pinned, and until it is not, and goes
	// to another port only when its old pin is gone: who gets the address of a
	// container that is gone does not get its pin, though a pass may end at any step.
	res.hard(step("anti-spoofing", func() (bool, error) { return l.o.Firewall.ClaimBridge(ctx, d.Bridges) }))
	err := step("the firewall", func() (changed bool, err error) {
		res.table, err = l.o.Firewall.Apply(ctx, d.Firewall, prune)
		return res.table, err
	})
	res.hard(err)
	if err == nil {
		res.hard(step("anti-spoofing", func() (bool, error) { return l.o.Firewall.ApplyBridge(ctx, d.Bridges, prune) }))
	}
	if misrouted == nil && err == nil {
		res.partial(l.o.Ports.Serve())
	}
	if prune {
		res.partial(l.rememberStrict(res))
	}
	return res
}

// learn gives pending endpoints what Docker has told of their containers, and
// all others the names that their containers have now. Whose endpoint it is
// Docker's list knows better than a Join, which asked by a name.
func (l *Loop) learn(containers map[string]model.Container) error {
	var errs []error
	for _, e := range l.o.Store.Endpoints() {
		c := containers[e.ID]
		if !c.Known || e.Container.Known && e.Container.ID == c.ID && e.Container.Name == c.Name {
			continue
		}
		err := l.o.Store.UpdateEndpoint(e.ID, func(e *model.Endpoint) {
			if e.Container.Known && e.Container.ID == c.ID {
				e.Container.Name = c.Name
				return
			}
			e.Container = c
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("remembering the labels of %s: %w", c.Name, err))
		}
	}
	return errors.Join(errs...)
}

// gather puts together what was asked for: networks, endpoints and host entries
// of ours from the store, stock ones from Docker. Before Docker has said anything, the
// strict stock networks that we remember stand for themselves.
func (l *Loop) gather(res *Result, view DockerView, seen bool) {
	for _, n := range l.o.Store.Networks() {
		if !n.Stock || !seen {
			res.Networks = append(res.Networks, n)
		}
	}
	res.Networks = append(res.Networks, view.Stock...)
	res.Endpoints = append(l.o.Store.Endpoints(), view.Endpoints...)
	for _, e := range l.o.Store.HostEntries() {
		res.Networks, res.Endpoints = append(res.Networks, e.Network()), append(res.Endpoints, e.Endpoint())
	}
	res.Strays, res.Beside = view.Strays, view.Beside
}

// rememberStrict persists the strict stock networks, so that they are locked
// from the first moment after a restart.
func (l *Loop) rememberStrict(res *Result) error {
	var errs []error
	now := make(map[string]bool)
	for _, n := range res.Networks {
		if n.Stock && slices.Contains(res.Desired.Firewall.Locked, n.Bridge) {
			now[n.ID] = true
			errs = append(errs, l.o.Store.PutNetwork(n))
		}
	}
	for _, n := range l.o.Store.Networks() {
		if n.Stock && !now[n.ID] {
			errs = append(errs, l.o.Store.DeleteNetwork(n.ID))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remembering strict networks: %w", err)
	}
	return nil
}

// compute observes and decides. A NIC that is asked for by the decision is
// observed once more as such, as its gateway is looked for only then.
func (l *Loop) compute(ctx context.Context, res *Result, dockerUp bool) error {
	var asked, watch []string
	var fw plan.Firewall
	if last := l.last.Load(); last != nil {
		asked, fw, watch = last.Desired.Asked, last.Desired.Firewall, last.Desired.Watch
	}
	endpoints := res.Endpoints
	bridges := l.ports.bridges(res.Networks, endpoints, fw)
	var peersErr error
	for round := range 2 {
		host, err := l.o.Host.Observe(ctx, asked)
		if err != nil {
			return fmt.Errorf("observing the host: %w", err)
		}
		var seen []string
		if len(bridges) > 0 {
			// Without it a neighbour could bear a pinned address; that is told
			// and tried again, and no reason to let the pin go.
			if host.Peers, err = l.o.Host.Peers(ctx, bridges); err != nil {
				peersErr = fmt.Errorf("finding out who is behind the ports of %s: %w", strings.Join(bridges, ", "), err)
			} else {
				seen = bridges
			}
		}
		res.Endpoints = l.ports.present(res.Networks, endpoints, seen, host.Peers)
		res.Host = host
		res.snapshot = plan.Snapshot{
			Settings: l.o.Settings, Host: host, IDs: l.o.Store.NICIDs(), Stay: l.stay, Leaving: l.leaving(endpoints, dockerUp), Lost: l.unknown(endpoints, dockerUp),
			Networks: res.Networks, Endpoints: res.Endpoints, Strays: res.Strays, Beside: res.Beside,
			Rebinds: l.o.Store.Rebinds(), DockerUp: dockerUp,
		}
		if l.o.Settings.Cgroups {
			res.snapshot.Cgroups, res.snapshot.HostPinned = l.o.Host.Cgroups(res.Strays), l.onHost
		}
		res.snapshot.Health = l.o.Health.Look(ctx, host, res.snapshot.IDs, watch)
		res.Desired, res.Problems = plan.Compute(res.snapshot)
		look := l.ports.bridges(res.Networks, endpoints, res.Desired.Firewall)
		if slices.Equal(asked, res.Desired.Asked) && slices.Equal(watch, res.Desired.Watch) && slices.Equal(bridges, look) {
			break
		}
		asked, bridges, watch = res.Desired.Asked, look, res.Desired.Watch
		if round == 1 {
			l.Poke() // what is asked for now is looked at in the next pass
		}
	}
	l.onHost = l.onHost || len(res.Desired.HostPins) > 0
	if l.o.Stay {
		l.stay = res.failedOver()
	}
	res.partial(peersErr)
	if l.forgot {
		res.Problems = append(res.Problems, stateLost)
	}
	return nil
}

// reserve binds the published ports; what could not be had is not forwarded. Of
// ports whose endpoint is not decided yet nobody has to know: that is told when it is.
func (l *Loop) reserve(res *Result) {
	failed := l.o.Ports.Set(slices.Concat(res.Desired.Ports, res.Desired.Spare))
	maps.DeleteFunc(failed, func(p plan.Port, _ error) bool { return slices.Contains(res.Desired.Spare, p) })
	res.Published = slices.DeleteFunc(slices.Clone(res.Desired.Ports), func(p plan.Port) bool {
		_, bad := failed[p]
		return bad
	})
	if len(failed) == 0 {
		return
	}
	names := make(map[string]string)
	for _, e := range res.Endpoints {
		names[e.ID] = e.Name()
	}
	dropped := make(map[plan.Forward]bool)
	for p, err := range failed {
		dropped[p.Forward] = true
		res.PortErrors[p.Endpoint] = errors.Join(res.PortErrors[p.Endpoint], err)
		res.Problems = append(res.Problems, model.Problem{
			Code: model.CodePortTaken, Severity: model.Failure, Subject: names[p.Endpoint], Text: err.Error(),
			Fix: "free the port, or publish another one",
		})
	}
	// Another endpoint may hold the very same forward: then it stays.
	for _, p := range res.Published {
		delete(dropped, p.Forward)
	}
	fw := &res.Desired.Firewall
	fw.Proxied = plan.Listeners(res.Published)
	fw.Forwards = slices.DeleteFunc(slices.Clone(fw.Forwards), func(f plan.Forward) bool { return dropped[f] })
}
