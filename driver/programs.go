package driver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// Programs of the host are endpoints on a network of ours that Docker knows
// nothing of. It is there as long as one of them is.

// programSubnets are tried in this order, unless the administrator named one.
var programSubnets = []netip.Prefix{
	netip.MustParsePrefix("10.231.0.0/20"),
	netip.MustParsePrefix("172.30.240.0/20"),
	netip.MustParsePrefix("192.168.240.0/20"),
	netip.MustParsePrefix("100.127.240.0/20"),
	netip.MustParsePrefix("198.19.240.0/20"),
}

// How long Attach waits for Docker, which may be starting just now, and how
// often it looks.
const (
	dockerWait = 10 * time.Second
	dockerLook = 100 * time.Millisecond
)

// awaitDocker waits until Docker's event stream is connected.
func (d *Driver) awaitDocker(ctx context.Context) error {
	giveUp := time.NewTimer(dockerWait)
	defer giveUp.Stop()
	tick := time.NewTicker(dockerLook)
	defer tick.Stop()
	for !d.labels.Up() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-giveUp.C:
			return errors.New("docker does not answer, and whether the host may forward packets is not decided before it does")
		case <-tick.C:
		}
	}
	return nil
}

// Attach makes an endpoint for a program. On an error nothing of it is left.
func (d *Driver) Attach(ctx context.Context, p model.Program) (model.Attachment, error) {
	if err := d.awaitDocker(ctx); err != nil {
		return model.Attachment{}, err
	}
	var rebind model.Rebind
	if p.As != "" {
		e, err := d.hostEntry(p.As)
		if err != nil {
			return model.Attachment{}, err
		}
		p.Options, p.Publishes = e.Options, e.Publishes
		rebind, _ = d.store.Rebind(e.ID())
	}
	wishes, err := d.checkProgram(ctx, p, rebind.Options)
	if err != nil {
		return model.Attachment{}, err
	}
	n, e, err := d.admit(ctx, p)
	if err == nil {
		err = d.connect(ctx, n, e, wishes)
	}
	if err != nil {
		ctx, cancel := undo(ctx)
		defer cancel()
		return model.Attachment{}, errors.Join(err, d.Detach(ctx, e.ID))
	}
	return attachment(n, e), nil
}

func attachment(n model.Network, e model.Endpoint) model.Attachment {
	return model.Attachment{ID: e.ID, Link: peerVeth(e.ID), Addr: netip.PrefixFrom(e.Addr4, n.Subnet4.Bits()), Gateway: n.Gateway4}
}

// hostEntry finds the entry that a program is to join.
func (d *Driver) hostEntry(name string) (model.HostEntry, error) {
	for _, e := range d.store.HostEntries() {
		if e.Name == name && !e.Leaving {
			return e, nil
		}
	}
	return model.HostEntry{}, fmt.Errorf("there is no host entry %s: see eipnet host ls", name)
}

// checkProgram refuses what could not work. rebind is what was said of the host
// entry that it is to join; nil: nothing.
func (d *Driver) checkProgram(ctx context.Context, p model.Program, rebind map[string]string) ([]wish, error) {
	pin, err := model.ParsePinOptions(p.Options)
	if err == nil && rebind != nil {
		pin, err = model.ParsePinOptions(rebind)
	}
	if err != nil {
		return nil, err
	}
	host, err := d.core.Host(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking at this host's networks: %w", err)
	}
	nic, _, err := host.Resolve(pin.Selector, d.core.EIPs())
	if err != nil {
		return nil, err
	}
	if _, ok := nic.Addr(model.IPv4); !ok {
		return nil, fmt.Errorf("%s has no IPv4 address", nic.Name)
	}
	var wishes []wish
	for _, pub := range p.Publishes {
		b := portBinding{Proto: uint8(pub.Proto), HostPort: pub.HostPort, Port: pub.Port}
		if pub.HostIP.IsValid() {
			b.HostIP = pub.HostIP.String()
		}
		w, err := b.wish()
		if err != nil {
			return nil, err
		}
		wishes = append(wishes, w)
	}
	return wishes, nil
}

// admit stores the endpoint, and the network where this is its first one.
func (d *Driver) admit(ctx context.Context, p model.Program) (model.Network, model.Endpoint, error) {
	unlock, err := d.lockNetwork(ctx, model.ProgramsID)
	if err != nil {
		return model.Network{}, model.Endpoint{}, err
	}
	defer unlock()
	n, err := d.programsNetwork(ctx)
	if err != nil {
		return n, model.Endpoint{}, err
	}
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	e := model.Endpoint{ID: hex.EncodeToString(id[:]), NetworkID: n.ID, Phase: model.Created, Options: p.Options, As: p.As}
	e.Container = model.Container{Known: true, ID: e.ID, Name: p.Name}
	used := map[netip.Addr]bool{n.Gateway4: true}
	for _, o := range d.store.Endpoints() {
		if o.Container.Name == p.Name {
			return n, model.Endpoint{}, fmt.Errorf("the name %s is in use by another endpoint", p.Name)
		}
		if p.As != "" && o.As == p.As {
			return n, model.Endpoint{}, fmt.Errorf("%s has joined host entry %s already", o.Name(), p.As)
		}
		used[o.Addr4] = true
	}
	for _, h := range d.store.HostEntries() {
		if h.Name == p.Name {
			return n, model.Endpoint{}, fmt.Errorf("the name %s is in use by a host entry", p.Name)
		}
	}
	for a := n.Gateway4.Next(); n.Subnet4.Contains(a.Next()); a = a.Next() {
		if !used[a] {
			e.Addr4 = a
			break
		}
	}
	if !e.Addr4.IsValid() {
		return n, model.Endpoint{}, fmt.Errorf("no address is free in %v, the subnet of programs", n.Subnet4)
	}
	e.MAC = macOf(e)
	if err := d.store.PutEndpoint(e); err != nil {
		return n, model.Endpoint{}, fmt.Errorf("storing the endpoint of %s: %w", p.Name, err)
	}
	return n, e, nil
}

// programsNetwork returns the network of programs; its lock is held.
func (d *Driver) programsNetwork(ctx context.Context) (model.Network, error) {
	if n, ok := d.store.Network(model.ProgramsID); ok {
		return n, nil
	}
	host, err := d.core.Host(ctx)
	if err != nil {
		return model.Network{}, fmt.Errorf("looking at this host's networks: %w", err)
	}
	candidates := programSubnets
	if d.programs.IsValid() {
		candidates = []netip.Prefix{d.programs}
	}
	n := model.Network{ID: model.ProgramsID, Name: model.ProgramsID, Bridge: model.ProgramsBridge}
	var errs []error
	for _, subnet := range candidates {
		n.Subnet4, n.Gateway4 = subnet, subnet.Addr().Next()
		err := checkUnrouted(subnet, host)
		if err == nil {
			err = d.claim(ctx, n)
		}
		if err == nil {
			return n, d.core.Sync(ctx, n.Bridge)
		}
		errs = append(errs, err)
	}
	return n, fmt.Errorf("no subnet is free for programs; name one with serve --programs-subnet: %w", errors.Join(errs...))
}

// checkUnrouted refuses a subnet that the host has routes to: nobody chose it
// for what is there, as a person does who names a network's.
func checkUnrouted(subnet netip.Prefix, host model.Host) error {
	for _, p := range host.Routed {
		if subnet.Overlaps(p) {
			return fmt.Errorf("subnet %v overlaps %v, to which this host has a route", subnet, p)
		}
	}
	return nil
}

// connect makes the endpoint's devices, pin and ports.
func (d *Driver) connect(ctx context.Context, n model.Network, e model.Endpoint, wishes []wish) error {
	unlock, err := d.lockEndpoint(ctx, e.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.addVeth(ctx, n, e); err != nil {
		return err
	}
	if err := d.update(&e, func(e *model.Endpoint) { e.Phase, e.Veth = model.Joined, hostVeth(e.ID) }); err != nil {
		return err
	}
	if err := d.core.Sync(ctx, n.Bridge); err != nil {
		return fmt.Errorf("pinning %s: %w", e.Name(), err)
	}
	if len(wishes) > 0 {
		wishes, err = d.settleHostIPs(ctx, e, wishes)
		if err != nil {
			return err
		}
		if err := d.publish(ctx, e, wishes); err != nil {
			return err
		}
	}
	d.log.Info("attached a program", append(endpointAttrs(e), slog.String("address", e.Addr4.String()))...)
	return nil
}

// Attached lists the endpoints of programs.
func (d *Driver) Attached() []model.Endpoint {
	return slices.DeleteFunc(d.store.Endpoints(), func(e model.Endpoint) bool { return e.NetworkID != model.ProgramsID })
}

// Detach removes a program's endpoint, and the network with the last one. What
// is not there is removed already.
func (d *Driver) Detach(ctx context.Context, id string) error {
	if e, ok := d.store.Endpoint(id); ok && e.NetworkID != model.ProgramsID {
		return fmt.Errorf("endpoint %s is no program's", model.ShortID(id))
	}
	err := d.removeStale(ctx, id)
	unlock, lockErr := d.lockNetwork(ctx, model.ProgramsID)
	if lockErr != nil {
		return errors.Join(err, lockErr)
	}
	defer unlock()
	if _, ok := d.store.Network(model.ProgramsID); ok && len(d.Attached()) == 0 {
		err = errors.Join(err, d.forgetNetwork(ctx, model.ProgramsID))
	}
	return err
}
