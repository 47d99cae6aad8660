package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/eipnet/eipnet/internal/model"
)

// join connects an endpoint: its pin is decided here, before the container's
// first instruction, wherever Docker tells its labels in time.
func (d *Driver) join(ctx context.Context, req sandboxRequest) (joinResponse, error) {
	unlock, err := d.lockEndpoint(ctx, req.EndpointID)
	if err != nil {
		return joinResponse{}, err
	}
	defer unlock()
	e, ok := d.store.Endpoint(req.EndpointID)
	if !ok {
		return joinResponse{}, fmt.Errorf("endpoint %s is not known to eipnet (is its state gone?): start the container again", model.ShortID(req.EndpointID))
	}
	n, ok := d.store.Network(e.NetworkID)
	if !ok {
		return joinResponse{}, errUnknownNetwork(e.NetworkID)
	}
	if !e.Container.Known {
		e.Container = d.resolve(ctx, e)
	}
	container := e.Container
	if err := d.checkPin(ctx, e); err != nil {
		return joinResponse{}, err
	}
	again := e.Phase == model.Joined
	if !again {
		if err := d.addVeth(ctx, n, e); err != nil {
			return joinResponse{}, err
		}
	}
	if err := d.update(&e, func(e *model.Endpoint) {
		e.Phase, e.Veth, e.WantsPorts = model.Joined, hostVeth(e.ID), wantsPorts(req.Options)
		if !e.Container.Known { // or a pass was faster
			e.Container = container
		}
	}); err != nil {
		if !again {
			d.disconnect(ctx, e)
		}
		return joinResponse{}, err
	}
	if err := d.core.Sync(ctx, n.Bridge); err != nil {
		if d.labels.Up() {
			if !again {
				d.disconnect(ctx, e)
			}
			return joinResponse{}, fmt.Errorf("pinning %s: %w", e.Name(), err)
		}
		d.log.Warn("an endpoint stays held", append(endpointAttrs(e), slog.Any("err", err))...)
	}
	d.log.Info("joined an endpoint", append(endpointAttrs(e), slog.Bool("pending", !e.Container.Known))...)
	return answerJoin(n, e), nil
}

func answerJoin(n model.Network, e model.Endpoint) joinResponse {
	var resp joinResponse
	resp.InterfaceName.SrcName, resp.InterfaceName.DstPrefix = peerVeth(e.ID), n.IfPrefix
	if n.IfPrefix == "" {
		resp.InterfaceName.DstPrefix = "eth"
	}
	if n.Internal { // with a gateway, Docker 29 would publish ports of an internal network
		return resp
	}
	if e.Addr4.IsValid() {
		resp.Gateway = n.Gateway4.String()
	}
	if e.Addr6.IsValid() {
		resp.GatewayIPv6 = n.Gateway6.String()
	}
	return resp
}

// resolve asks Docker for the endpoint's container. Known is false if it cannot
// tell now: then the endpoint is held until it does.
func (d *Driver) resolve(ctx context.Context, e model.Endpoint) model.Container {
	if !d.labels.Up() {
		return model.Container{}
	}
	ctx, cancel := context.WithTimeout(ctx, labelTimeout)
	defer cancel()
	c, err := d.labels.Container(ctx, e.NetworkID, e.ID)
	if err != nil || !c.Known {
		d.log.Debug("labels are not known yet", append(endpointAttrs(e), slog.Any("err", err))...)
		return model.Container{}
	}
	c.Labels = model.EipOnly(c.Labels)
	return c
}

// checkPin judges what all levels together say. Malformed labels, a choice
// beyond a network's ceiling, a contradiction to what another network of the
// container says, and a NIC that was never there are errors of docker run; only
// the selector that takes effect is looked up.
func (d *Driver) checkPin(ctx context.Context, e model.Endpoint) error {
	pin, err := d.said(e).Decide()
	if err != nil && !e.Container.Known {
		return nil // its labels may say what the network asks for
	}
	if err != nil {
		return fmt.Errorf("pinning %s: %w", e.Name(), err)
	}
	// A network's and a rebind's were looked up when they were said; if the NIC
	// is gone since, that is no error.
	if pin.From != model.FromNetwork && pin.From != model.FromRebind {
		if err := d.checkSelector(ctx, pin.Selector); err != nil {
			return err
		}
	}
	return d.checkAllowed(ctx, pin)
}

// said gathers what the endpoint and its container's others say, in the order
// in which a pass does. Another one on the same network is a predecessor that
// Docker has not deleted yet.
func (d *Driver) said(e model.Endpoint) model.Said {
	rebind, _ := d.store.Rebind(e.Container.ID)
	said := model.Said{Rebind: rebind.Options, Labels: e.Container.Labels}
	for _, o := range d.store.Endpoints() {
		if o.ID != e.ID && !sibling(o, e) {
			continue
		}
		if n, ok := d.store.Network(o.NetworkID); ok {
			said.Endpoints = append(said.Endpoints, o.Options)
			said.Networks = append(said.Networks, n)
		}
	}
	return said
}

// checkAllowed refuses a NIC that a network does not allow. One that is not
// there now is judged when it is.
func (d *Driver) checkAllowed(ctx context.Context, pin model.Decision) error {
	if pin.Allow == nil || pin.Selector.IsZero() {
		return nil
	}
	up := d.labels.Up()
	host, err := d.core.Host(ctx)
	if err != nil && up {
		return fmt.Errorf("looking at this host's NICs: %w", err)
	}
	if nic, _, err := host.Resolve(pin.Selector, d.core.EIPs()); err == nil {
		return pin.Allows(nic.Name)
	}
	return nil
}

// addVeth makes the endpoint's pair of interfaces.
func (d *Driver) addVeth(ctx context.Context, n model.Network, e model.Endpoint) error {
	v := Veth{Host: hostVeth(e.ID), Peer: peerVeth(e.ID), Bridge: n.Bridge, MAC: e.MAC, Alias: "eipnet endpoint " + e.ID, MTU: n.MTU}
	err := d.links.AddVeth(ctx, v)
	if err != nil {
		// After a reboot the first pass, which makes the bridge, may not have
		// run when dockerd starts its containers.
		if syncErr := d.core.Sync(ctx, n.Bridge); syncErr != nil {
			return fmt.Errorf("adding the veth of %s: %w; making its bridge: %w", e.Name(), err, syncErr)
		}
		err = d.links.AddVeth(ctx, v)
	}
	if err != nil {
		return fmt.Errorf("adding the veth of %s: %w", e.Name(), err)
	}
	return nil
}

// disconnect takes a join back, as far as it can.
func (d *Driver) disconnect(ctx context.Context, e model.Endpoint) {
	ctx, cancel := undo(ctx)
	defer cancel()
	err := errors.Join(
		d.update(&e, func(e *model.Endpoint) { e.Phase, e.Veth = model.Created, "" }),
		d.links.DeleteLink(ctx, hostVeth(e.ID)),
		d.core.Sync(ctx),
	)
	if err != nil {
		d.log.Warn("taking a join back failed in part", append(endpointAttrs(e), slog.Any("err", err))...)
	}
}
