package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// leave closes the endpoint: nothing of it leaves the host any more. Its veth
// stays until deleteEndpoint, as Docker only now moves it out of the container.
func (d *Driver) leave(ctx context.Context, req endpointRequest) (struct{}, error) {
	unlock, err := d.lockEndpoint(ctx, req.EndpointID)
	if err != nil {
		return struct{}{}, err
	}
	defer unlock()
	e, ok := d.store.Endpoint(req.EndpointID)
	if !ok || e.Phase == model.Left {
		return struct{}{}, nil
	}
	if err := d.bury(ctx, &e); err != nil {
		d.log.Error("leaving failed", append(endpointAttrs(e), slog.Any("err", err))...)
		return struct{}{}, nil
	}
	d.log.Info("left an endpoint", endpointAttrs(e)...)
	return struct{}{}, nil
}

// bury makes the endpoint a tombstone: its address is held, its ports are free.
func (d *Driver) bury(ctx context.Context, e *model.Endpoint) error {
	if err := d.update(e, func(e *model.Endpoint) { e.Phase, e.Publishes = model.Left, nil }); err != nil {
		return err
	}
	if err := d.core.Sync(ctx); err != nil {
		return fmt.Errorf("holding %s: %w", e.Name(), err)
	}
	return nil
}

// deleteEndpoint removes whatever is left of an endpoint.
func (d *Driver) deleteEndpoint(ctx context.Context, req endpointRequest) (struct{}, error) {
	if err := d.removeStale(ctx, req.EndpointID); err != nil {
		d.log.Error("deleting an endpoint failed", slog.String("endpoint", model.ShortID(req.EndpointID)), slog.Any("err", err))
	}
	return struct{}{}, nil
}

// removeStale removes an endpoint whichever phase it is in. Of one that is not
// there, as the state lost it, the veth may be, which Docker has moved out of the container.
func (d *Driver) removeStale(ctx context.Context, id string) error {
	unlock, err := d.lockEndpoint(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if e, ok := d.store.Endpoint(id); ok {
		return d.remove(ctx, e)
	}
	if err := d.links.DeleteLink(ctx, hostVeth(id)); err != nil {
		return fmt.Errorf("deleting veth %s: %w", hostVeth(id), err)
	}
	return nil
}

// remove removes an endpoint, whose lock is held: its address is held first,
// then its veth goes, then its connections, then the state. A retransmitted
// segment of an old connection must find the address held, not unpinned. The
// state stays if the veth does, so that the address stays held; other errors
// are logged.
func (d *Driver) remove(ctx context.Context, e model.Endpoint) error {
	id := e.ID
	var errs []error
	if e.Phase != model.Left {
		errs = append(errs, d.bury(ctx, &e))
	}
	if ctx.Err() != nil { // a pass that took too long must not leave the veth behind
		var cancel context.CancelFunc
		ctx, cancel = undo(ctx)
		defer cancel()
	}
	// By name and not by e.Veth: a join that was cut short did not store it.
	if err := d.links.DeleteLink(ctx, hostVeth(id)); err != nil {
		return errors.Join(append(errs, fmt.Errorf("deleting veth %s: %w", hostVeth(id), err))...)
	}
	addrs := slices.DeleteFunc([]netip.Addr{e.Addr4, e.Addr6}, func(a netip.Addr) bool { return !a.IsValid() })
	if _, err := d.links.FlushConntrack(ctx, addrs); err != nil {
		errs = append(errs, fmt.Errorf("forgetting the connections of %s: %w", e.Name(), err))
	}
	if err := d.store.DeleteEndpoint(id); err != nil {
		errs = append(errs, fmt.Errorf("removing endpoint %s from the state: %w", model.ShortID(id), err))
	}
	if err := d.core.Sync(ctx); err != nil {
		errs = append(errs, fmt.Errorf("forgetting %s: %w", e.Name(), err))
	}
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("deleting an endpoint failed in part", append(endpointAttrs(e), slog.Any("err", err))...)
	}
	d.log.Info("deleted an endpoint", endpointAttrs(e)...)
	return nil
}

// deleteNetwork removes a network and whatever endpoints Docker forgot to
// delete before. Docker forgets the network whatever is answered, so what goes
// wrong is logged and the rest done.
func (d *Driver) deleteNetwork(ctx context.Context, req networkRequest) (struct{}, error) {
	unlock, err := d.lockNetwork(ctx, req.NetworkID)
	if err != nil {
		return struct{}{}, err
	}
	defer unlock()
	n, ok := d.store.Network(req.NetworkID)
	if !ok {
		return struct{}{}, nil
	}
	for _, e := range d.store.Endpoints() {
		if e.NetworkID != n.ID {
			continue
		}
		if err := d.removeStale(ctx, e.ID); err != nil {
			d.log.Warn("a left-over endpoint stays", append(endpointAttrs(e), slog.Any("err", err))...)
		}
	}
	if err := d.forgetNetwork(ctx, n.ID); err != nil {
		d.log.Error("deleting a network failed", append(networkAttrs(n), slog.Any("err", err))...)
		return struct{}{}, nil
	}
	d.log.Info("deleted a network", networkAttrs(n)...)
	return struct{}{}, nil
}

func (d *Driver) forgetNetwork(ctx context.Context, id string) error {
	if err := d.store.DeleteNetwork(id); err != nil {
		return fmt.Errorf("removing network %s from the state: %w", model.ShortID(id), err)
	}
	if err := d.core.Sync(ctx); err != nil {
		return fmt.Errorf("removing the bridge of network %s: %w", model.ShortID(id), err)
	}
	return nil
}
