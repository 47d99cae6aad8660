package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/eipnet/eipnet/internal/model"
)

// createEndpoint notes an endpoint. The kernel hears nothing of it yet: an
// endpoint that is in no map is held.
func (d *Driver) createEndpoint(ctx context.Context, req createEndpointRequest) (createEndpointResponse, error) {
	e, err := d.parseEndpoint(req)
	if err != nil {
		return createEndpointResponse{}, err
	}
	pin, err := model.ParsePinOptions(e.Options)
	if err != nil {
		return createEndpointResponse{}, err
	}
	if err := d.checkSelector(ctx, pin.Selector); err != nil {
		return createEndpointResponse{}, err
	}

	// The network's lock keeps deleteNetwork from missing this endpoint, and
	// two endpoints from taking over the same address.
	unlockNetwork, err := d.lockNetwork(ctx, e.NetworkID)
	if err != nil {
		return createEndpointResponse{}, err
	}
	defer unlockNetwork()
	if _, ok := d.store.Network(e.NetworkID); !ok {
		return createEndpointResponse{}, errUnknownNetwork(e.NetworkID)
	}
	unlock, err := d.lockEndpoint(ctx, e.ID)
	if err != nil {
		return createEndpointResponse{}, err
	}
	defer unlock()
	if old, ok := d.store.Endpoint(e.ID); ok {
		if old.NetworkID != e.NetworkID || old.Addr4 != e.Addr4 || old.Addr6 != e.Addr6 {
			return createEndpointResponse{}, fmt.Errorf("endpoint %s exists already with another address", model.ShortID(e.ID))
		}
		e = old
	} else {
		if err := d.removePredecessors(ctx, e); err != nil {
			return createEndpointResponse{}, err
		}
		if err := d.store.PutEndpoint(e); err != nil {
			return createEndpointResponse{}, fmt.Errorf("storing endpoint %s: %w", model.ShortID(e.ID), err)
		}
		d.log.Info("created an endpoint", endpointAttrs(e)...)
	}
	// Only what came empty may be answered: anything else makes Docker roll back.
	if req.Interface.MacAddress != "" {
		return createEndpointResponse{}, nil
	}
	return createEndpointResponse{Interface: &endpointInterface{MacAddress: e.MAC}}, nil
}

func (d *Driver) parseEndpoint(req createEndpointRequest) (model.Endpoint, error) {
	e := model.Endpoint{ID: req.EndpointID, NetworkID: req.NetworkID, Phase: model.Created, Options: req.Options.eip()}
	n, ok := d.store.Network(e.NetworkID)
	if !ok {
		return e, errUnknownNetwork(e.NetworkID)
	}
	if req.Interface == nil || req.Interface.Address == "" && req.Interface.AddressIPv6 == "" {
		return e, errors.New("an endpoint of an eipnet network needs an address: Docker gave none")
	}
	var err error
	if e.Addr4, err = addressIn(n.Subnet4, req.Interface.Address); err != nil {
		return e, err
	}
	if e.Addr6, err = addressIn(n.Subnet6, req.Interface.AddressIPv6); err != nil {
		return e, err
	}
	if req.Interface.MacAddress == "" {
		e.MAC = macOf(e)
		return e, nil
	}
	mac, err := net.ParseMAC(req.Interface.MacAddress)
	if err != nil || len(mac) != 6 {
		return e, fmt.Errorf("%q is no MAC address", req.Interface.MacAddress)
	}
	e.MAC = mac.String()
	return e, nil
}

// addressIn reads an address of the subnet; an empty one is zero.
func addressIn(subnet netip.Prefix, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	addr, err := parseAddress(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reading the endpoint's address: %w", err)
	}
	if !subnet.IsValid() || !subnet.Contains(addr) {
		return netip.Addr{}, fmt.Errorf("address %v is not in the network's subnet", addr)
	}
	return addr, nil
}

// removePredecessors removes endpoints whose address is given out again: Docker
// deletes them first, unless it was killed. They would hold the new one.
func (d *Driver) removePredecessors(ctx context.Context, e model.Endpoint) error {
	for _, o := range d.store.Endpoints() {
		if !sharesAddress(o, e) {
			continue
		}
		d.log.Warn("an address is given out again", append(endpointAttrs(o), slog.String("successor", model.ShortID(e.ID)))...)
		if err := d.removeStale(ctx, o.ID); err != nil {
			return fmt.Errorf("removing endpoint %s, which had the same address: %w", model.ShortID(o.ID), err)
		}
	}
	return nil
}

// sharesAddress reports whether two endpoints have the same address on one network.
func sharesAddress(a, b model.Endpoint) bool {
	same := func(a, b netip.Addr) bool { return a.IsValid() && a == b }
	return a.ID != b.ID && a.NetworkID == b.NetworkID && (same(a.Addr4, b.Addr4) || same(a.Addr6, b.Addr6))
}

// update changes the endpoint in the store, and e to what is there then.
func (d *Driver) update(e *model.Endpoint, fn func(*model.Endpoint)) error {
	if err := d.store.UpdateEndpoint(e.ID, fn); err != nil {
		return fmt.Errorf("storing endpoint %s: %w", model.ShortID(e.ID), err)
	}
	if now, ok := d.store.Endpoint(e.ID); ok {
		*e = now
	}
	return nil
}

// endpointOperInfo answers at once: no engine shows what a remote driver returns.
func (d *Driver) endpointOperInfo(context.Context, endpointRequest) (operInfoResponse, error) {
	return operInfoResponse{}, nil
}

func (d *Driver) lockNetwork(ctx context.Context, id string) (unlock func(), err error) {
	unlock, err = d.locks.lock(ctx, "network "+id)
	if err != nil {
		return nil, fmt.Errorf("waiting for an earlier call about network %s: %w", model.ShortID(id), err)
	}
	return unlock, nil
}

func (d *Driver) lockEndpoint(ctx context.Context, id string) (unlock func(), err error) {
	unlock, err = d.locks.lock(ctx, "endpoint "+id)
	if err != nil {
		return nil, fmt.Errorf("waiting for an earlier call about endpoint %s: %w", model.ShortID(id), err)
	}
	return unlock, nil
}

func hostVeth(endpointID string) string { return "eipv" + prefix(endpointID) }
func peerVeth(endpointID string) string { return "eipc" + prefix(endpointID) }

func errUnknownNetwork(id string) error {
	return fmt.Errorf("network %s is not known to eipnet (is its state gone?): remove it and create it again", model.ShortID(id))
}

func endpointAttrs(e model.Endpoint) []any {
	a := []any{slog.String("endpoint", model.ShortID(e.ID)), slog.String("network", model.ShortID(e.NetworkID))}
	if e.Container.Name != "" {
		a = append(a, slog.String("container", e.Container.Name))
	}
	return a
}
