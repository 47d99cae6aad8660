package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// ErrRefused marks errors of [Loop.Rebind] after which everything is as it was,
// as what was asked for cannot be.
var ErrRefused = errors.New("refused")

// seenWithin is how long Rebind waits for a container that Docker may not have
// told of yet, as whoever has just started one goes on at once.
const seenWithin = 2 * time.Second

type refusal struct {
	error
	unseen bool // no such container runs, as far as is known
}

func (refusal) Is(target error) bool { return target == ErrRefused }

func refusef(format string, args ...any) error { return refusal{error: fmt.Errorf(format, args...)} }

func unseenf(format string, args ...any) error {
	return refusal{error: fmt.Errorf(format, args...), unseen: true}
}

// Rebound is a container before and after a rebind, one pin for each of its
// endpoints, in the order of the endpoints.
type Rebound struct {
	ContainerID, Name string
	Before, After     []plan.Pin
}

// Rebind pins a container to what the options say, above its labels and all
// else, and remembers that until the container is removed. Without options it
// forgets what was said. It returns when the container has moved and its flows
// are forgotten. The container is named by its name or the beginning of its id.
func (l *Loop) Rebind(ctx context.Context, container string, options map[string]string) (Rebound, error) {
	giveUp := time.NewTimer(seenWithin)
	defer giveUp.Stop()
	again := time.NewTicker(MinInterval)
	defer again.Stop()
	for {
		out, err := l.rebind(ctx, container, options)
		if refused, ok := errors.AsType[refusal](err); !ok || !refused.unseen {
			return out, err
		}
		select {
		case <-giveUp.C:
			return out, err
		case <-ctx.Done():
			return out, err
		case <-again.C:
		}
	}
}

func (l *Loop) rebind(ctx context.Context, container string, options map[string]string) (Rebound, error) {
	l.rebinding.Lock()
	defer l.rebinding.Unlock()
	res, err := l.Last(ctx)
	if err != nil {
		return Rebound{}, err
	}
	target, err := l.findContainer(res, container)
	if err != nil {
		return Rebound{}, err
	}
	target.Options = options
	if len(options) > 0 {
		if err := target.Check(); err != nil {
			return Rebound{}, refusal{error: err}
		}
		if err := res.allows(target); err != nil {
			return Rebound{}, err
		}
	}
	out := Rebound{ContainerID: target.ContainerID, Name: target.Name, Before: res.pinsOf(target.ContainerID)}
	before, was := l.rebindOf(target.ContainerID)
	if err := l.say(target); err != nil {
		return Rebound{}, err
	}
	after, err := l.settle(ctx, target.ContainerID)
	if err != nil {
		before.ContainerID = target.ContainerID
		if !was {
			before.Options = nil
		}
		undo := l.say(before)
		l.Hurry() // though ctx may be over
		undo = errors.Join(undo, l.Sync(ctx))
		return Rebound{}, errors.Join(fmt.Errorf("rebinding %s: %w; it stays where it was", target.Name, err), undo)
	}
	out.After = after.pinsOf(target.ContainerID)
	l.o.Log.Info("container rebound", slog.String("container", target.Name), slog.Any("options", options))
	return out, nil
}

// say persists what is said of a container; nothing at all is forgotten.
func (l *Loop) say(r model.Rebind) error {
	if len(r.Options) == 0 {
		return l.o.Store.DeleteRebind(r.ContainerID)
	}
	return l.o.Store.PutRebind(r)
}

func (l *Loop) rebindOf(containerID string) (model.Rebind, bool) {
	all := l.o.Store.Rebinds()
	i := slices.IndexFunc(all, func(r model.Rebind) bool { return r.ContainerID == containerID })
	if i < 0 {
		return model.Rebind{}, false
	}
	return all[i], true
}

// settle passes, and once more: the second pass begins when what the first one
// left for later, the flows, is done.
func (l *Loop) settle(ctx context.Context, containerID string) (*Result, error) {
	res, err := l.Last(ctx)
	if err != nil {
		return nil, err
	}
	bridges := res.bridgesOf(containerID)
	for range 2 {
		if err := l.Sync(ctx, bridges...); err != nil {
			return nil, err
		}
		if res, err = l.Last(ctx); err != nil {
			return nil, err
		}
		if err := res.portErrors(containerID); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// follows reports whether an endpoint goes where the container is bound to: it
// is one of its own, or a program that has joined it as a host entry.
func follows(e model.Endpoint, containerID string) bool {
	return e.Container.ID == containerID || e.As != "" && e.JoinedID() == containerID
}

// portErrors tells why a container's ports are not reserved.
func (r *Result) portErrors(containerID string) error {
	var errs []error
	for _, e := range r.Endpoints {
		if follows(e, containerID) {
			errs = append(errs, r.PortErrors[e.ID])
		}
	}
	return errors.Join(errs...)
}

// findContainer finds a running container, or one that was rebound, by its name
// or the beginning of its id.
func (l *Loop) findContainer(res *Result, container string) (model.Rebind, error) {
	container = strings.TrimPrefix(container, "/")
	found := make(map[string]string) // id → name
	look := func(id, name string) {
		if id != "" && (name == container || strings.HasPrefix(id, container)) {
			found[id] = name
		}
	}
	for _, r := range l.o.Store.Rebinds() {
		look(r.ContainerID, r.Name)
	}
	for _, e := range res.Endpoints {
		if e.Container.ID != "" && e.Container.Name == container { // and not one that had the name before
			return model.Rebind{ContainerID: e.Container.ID, Name: container}, nil
		}
		look(e.Container.ID, e.Container.Name)
	}
	exact := model.Rebind{}
	for id, name := range found {
		if name == container || id == container {
			return model.Rebind{ContainerID: id, Name: name}, nil
		}
		exact = model.Rebind{ContainerID: id, Name: name}
	}
	switch {
	case container == "" || len(found) == 0:
		return exact, unseenf("no container %q runs on a bridge or eipnet network of this host", container)
	case len(found) > 1:
		return exact, refusef("%q is the beginning of %d containers' ids: say more of it", container, len(found))
	}
	return exact, nil
}

// allows tries the rebind on what the pass saw: what would be held is refused,
// and so is one that would want another container's published port.
func (r *Result) allows(rebind model.Rebind) error {
	in := r.snapshot
	in.Leaving = nil // as it will be in the end
	in.Rebinds = append(slices.DeleteFunc(slices.Clone(in.Rebinds), func(o model.Rebind) bool { return o.ContainerID == rebind.ContainerID }), rebind)
	would, _ := plan.Compute(in)
	running := false
	mine, names := make(map[string]bool), make(map[string]string)
	for i, e := range in.Endpoints {
		names[e.ID] = e.Name()
		if !follows(e, rebind.ContainerID) {
			continue
		}
		running, mine[e.ID] = true, true
		if p := would.Pins[i]; p.State == plan.StateBlocked && e.Container.ID == rebind.ContainerID {
			return refusef("rebinding %s: %s", rebind.Name, p.Why)
		}
	}
	if !running {
		return unseenf("%s does not run: start it, then rebind it", rebind.Name)
	}
	for _, p := range would.Ports {
		if !mine[p.Endpoint] {
			continue
		}
		for _, o := range would.Ports {
			f, g := p.Forward, o.Forward
			if !mine[o.Endpoint] && f.Proto == g.Proto && f.Port == g.Port && f.Addr == g.Addr {
				return refusef("rebinding %s: %s has %v/%v published already", rebind.Name, names[o.Endpoint], netip.AddrPortFrom(f.Addr, f.Port), f.Proto)
			}
		}
	}
	return nil
}

// pinsOf lists the pins of a container's endpoints.
func (r *Result) pinsOf(containerID string) []plan.Pin {
	var out []plan.Pin
	for i, e := range r.Endpoints {
		if e.Container.ID == containerID && i < len(r.Desired.Pins) {
			out = append(out, r.Desired.Pins[i])
		}
	}
	return out
}

// bridgesOf lists the bridges that a container is on.
func (r *Result) bridgesOf(containerID string) []string {
	var out []string
	for _, e := range r.Endpoints {
		for _, n := range r.Networks {
			if follows(e, containerID) && n.ID == e.NetworkID {
				out = append(out, n.Bridge)
			}
		}
	}
	return out
}
