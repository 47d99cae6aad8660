package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// createNetwork makes a network and its bridge. Here, and only here, everything
// about the network that can be wrong is told to the person who makes it:
// Docker never asks again.
func (d *Driver) createNetwork(ctx context.Context, req createNetworkRequest) (struct{}, error) {
	n, err := parseNetwork(req)
	if err != nil {
		return struct{}{}, err
	}
	unlock, err := d.lockNetwork(ctx, n.ID)
	if err != nil {
		return struct{}{}, err
	}
	defer unlock()

	if old, ok := d.store.Network(n.ID); ok {
		if !reflect.DeepEqual(old, n) {
			return struct{}{}, fmt.Errorf("network %s exists already with other options", model.ShortID(n.ID))
		}
		return struct{}{}, nil
	}
	pin, err := model.ParseNetworkOptions(n.Options)
	if err != nil {
		return struct{}{}, err
	}
	if err := d.checkSelector(ctx, pin.Selector); err != nil {
		return struct{}{}, err
	}
	if err := d.claim(ctx, n); err != nil {
		return struct{}{}, err
	}
	if err := d.core.Sync(ctx, n.Bridge); err != nil {
		err = fmt.Errorf("making bridge %s: %w", n.Bridge, err)
		ctx, cancel := undo(ctx)
		defer cancel()
		return struct{}{}, errors.Join(err, d.forgetNetwork(ctx, n.ID))
	}
	d.log.Info("created a network", networkAttrs(n)...)
	return struct{}{}, nil
}

// claim stores the network if nobody else has its bridge name or its addresses.
func (d *Driver) claim(ctx context.Context, n model.Network) error {
	host, err := d.lookAround(ctx, n)
	if err != nil {
		return err
	}
	d.create.Lock()
	defer d.create.Unlock()
	others := d.ours()
	for _, e := range d.store.HostEntries() {
		others = append(others, e.Network())
	}
	if err := checkBridgeName(n, host, others); err != nil {
		return err
	}
	for _, s := range n.Subnets() {
		if err := checkSubnet(s.Prefix, host, others); err != nil {
			return err
		}
	}
	if err := d.store.PutNetwork(n); err != nil {
		return fmt.Errorf("storing network %s: %w", model.ShortID(n.ID), err)
	}
	return nil
}

// lookAround returns what was observed of the host. If a link has the bridge's
// name it is observed anew: a pass that deletes the bridge of a network has
// still seen it.
func (d *Driver) lookAround(ctx context.Context, n model.Network) (model.Host, error) {
	host, err := d.core.Host(ctx)
	if err == nil && slices.Contains(host.Links, n.Bridge) {
		if err = d.core.Sync(ctx); err == nil {
			host, err = d.core.Host(ctx)
		}
	}
	if err != nil {
		return model.Host{}, fmt.Errorf("looking at this host's networks: %w", err)
	}
	return host, nil
}

// ours lists the networks without the strict stock ones, which are in the store
// too; their bridges are among the host's.
func (d *Driver) ours() []model.Network {
	return slices.DeleteFunc(d.store.Networks(), func(n model.Network) bool { return n.Stock })
}

func checkBridgeName(n model.Network, host model.Host, others []model.Network) error {
	if err := checkBridgeIsFree(n, others); err != nil {
		return err
	}
	for _, b := range host.Bridges {
		if b.Name == n.Bridge {
			return fmt.Errorf("bridge name %s is already in use by Docker", n.Bridge)
		}
	}
	if slices.Contains(host.Links, n.Bridge) {
		return fmt.Errorf("bridge name %s is already in use by a link of this host", n.Bridge)
	}
	return nil
}

func checkBridgeIsFree(n model.Network, others []model.Network) error {
	for _, o := range others {
		if o.Bridge == n.Bridge {
			return fmt.Errorf("bridge name %s is already in use by %s", n.Bridge, known(o))
		}
	}
	return nil
}

// known is what a person may know a network by.
func known(n model.Network) string {
	if n.Local {
		return "host entry " + n.Name
	}
	return "eipnet network " + model.ShortID(n.ID)
}

// checkSubnet refuses what Docker's IPAM lets pass: an explicit --subnet is not
// compared with the host's NICs there.
func checkSubnet(subnet netip.Prefix, host model.Host, others []model.Network) error {
	for _, nic := range host.NICs {
		for _, p := range nic.Addrs {
			if !p.Addr().IsLinkLocalUnicast() && subnet.Overlaps(p) {
				return fmt.Errorf("subnet %v overlaps %v of NIC %s", subnet, p, nic.Name)
			}
		}
	}
	for _, o := range others {
		for _, s := range o.Subnets() {
			if subnet.Overlaps(s.Prefix) {
				return fmt.Errorf("subnet %v overlaps %v of %s (bridge %s)", subnet, s.Prefix, known(o), o.Bridge)
			}
		}
	}
	for _, b := range host.Bridges {
		for _, s := range b.Subnets {
			if subnet.Overlaps(s.Prefix) {
				return fmt.Errorf("subnet %v overlaps %v of Docker's bridge %s", subnet, s.Prefix, b.Name)
			}
		}
	}
	return nil
}

func networkAttrs(n model.Network) []any {
	return []any{slog.String("network", model.ShortID(n.ID)), slog.String("bridge", n.Bridge)}
}
