package driver

import (
	"context"
	"log/slog"

	"github.com/eipnet/eipnet/internal/model"
)

// Sweep removes what Docker no longer knows (programs it never knew), as its calls would have done:
// endpoints for which live is false, and then networks for which networks is
// false and that have no endpoints. It returns how many it removed; what it
// could not remove is logged and there for the next time.
//
// The functions are asked while no call about the object is under way, and must
// not call the driver. Neither may a pass call Sweep, as it waits for passes.
func (d *Driver) Sweep(ctx context.Context, live, networks func(id string) bool) (removed int) {
	count := func(subject, id string, ok bool, err error) {
		if ok {
			removed++
		}
		if err != nil {
			d.log.Warn("sweeping failed", slog.String(subject, model.ShortID(id)), slog.Any("err", err))
		}
	}
	for _, e := range d.store.Endpoints() {
		if e.NetworkID == model.ProgramsID {
			continue
		}
		if ctx.Err() != nil {
			return removed
		}
		ok, err := d.sweepEndpoint(ctx, e.ID, live)
		count("endpoint", e.ID, ok, err)
	}
	for _, n := range d.ours() {
		if n.ID == model.ProgramsID {
			continue
		}
		if ctx.Err() != nil {
			return removed
		}
		ok, err := d.sweepNetwork(ctx, n.ID, networks)
		count("network", n.ID, ok, err)
	}
	return removed
}

func (d *Driver) sweepEndpoint(ctx context.Context, id string, live func(string) bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	unlock, err := d.lockEndpoint(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	e, ok := d.store.Endpoint(id)
	if !ok || live(id) {
		return false, nil
	}
	d.log.Info("sweeping an endpoint that Docker does not know", endpointAttrs(e)...)
	err = d.remove(ctx, e)
	_, still := d.store.Endpoint(id)
	return !still, err
}

func (d *Driver) sweepNetwork(ctx context.Context, id string, networks func(string) bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	unlock, err := d.lockNetwork(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	n, ok := d.store.Network(id)
	if !ok || networks(id) {
		return false, nil
	}
	for _, e := range d.store.Endpoints() {
		if e.NetworkID == id {
			return false, nil
		}
	}
	d.log.Info("sweeping a network that Docker does not know", networkAttrs(n)...)
	err = d.forgetNetwork(ctx, id)
	_, still := d.store.Network(id)
	return !still, err
}
