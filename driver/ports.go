package driver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// pickAttempts is how often a port that may be chosen is chosen anew, as on
// Docker's bridge: between choosing and reserving, another process may take it.
const pickAttempts = 10

// wish is one published port as it was asked for: any host port from First to
// Last, or any at all where First is 0.
type wish struct {
	Proto       model.Proto
	HostIP      netip.Addr // zero: none given
	First, Last uint16
	Port        uint16 // in the container

	Default bool // the host address is the network's
	Both    bool // it is 0.0.0.0, and [::] goes with it
}

func (w wish) fixed() bool { return w.First != 0 && w.First == w.Last }

func (w wish) publish(hostPort uint16) model.Publish {
	return model.Publish{Proto: w.Proto, HostIP: w.HostIP, HostPort: hostPort, Port: w.Port}
}

// publishes lists what comes of the wish with a host port.
func (w wish) publishes(hostPort uint16) []model.Publish {
	out := []model.Publish{w.publish(hostPort)}
	if w.Both {
		p := out[0]
		p.HostIP = netip.IPv6Unspecified()
		out = append(out, p)
	}
	return out
}

// picked is the address on which the port has to be free; zero: both families' all.
func (w wish) picked() netip.Addr {
	if w.Both {
		return netip.Addr{}
	}
	return w.HostIP
}

// grantedBy reports whether the publish is one that could have been chosen for the wish.
func (w wish) grantedBy(p model.Publish) bool {
	return p == w.publish(p.HostPort) && (w.First == 0 || w.First <= p.HostPort && p.HostPort <= w.Last)
}

// parsePortMap reads the port map of a request. The order of the result is
// that of choosing: fixed ports, then ranges, then any.
func parsePortMap(raw json.RawMessage) ([]wish, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var bindings []portBinding
	if err := json.Unmarshal(raw, &bindings); err != nil {
		return nil, fmt.Errorf("reading the port map: %w", err)
	}
	var wishes []wish
	for _, b := range bindings {
		w, err := b.wish()
		if err != nil {
			return nil, err
		}
		wishes = append(wishes, w)
	}
	kind := func(w wish) int {
		switch {
		case w.fixed():
			return 0
		case w.First != 0:
			return 1
		}
		return 2
	}
	slices.SortFunc(wishes, func(a, b wish) int {
		return cmp.Or(cmp.Compare(kind(a), kind(b)), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto),
			a.HostIP.Compare(b.HostIP), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	return slices.CompactFunc(wishes, func(a, b wish) bool { return a.fixed() && a == b }), nil
}

func (b portBinding) wish() (wish, error) {
	w := wish{Proto: model.Proto(b.Proto), First: b.HostPort, Last: max(b.HostPort, b.HostPortEnd), Port: b.Port}
	switch {
	case w.Proto != model.TCP && w.Proto != model.UDP && w.Proto != model.SCTP:
		return wish{}, fmt.Errorf("%v cannot be published: only TCP, UDP and SCTP can", w.Proto)
	case b.Port == 0:
		return wish{}, errors.New("publishing a port: the container's port is missing")
	case b.HostPort == 0 && b.HostPortEnd != 0, b.HostPortEnd != 0 && b.HostPortEnd < b.HostPort:
		return wish{}, fmt.Errorf("publishing port %d: %d-%d is no range of host ports", b.Port, b.HostPort, b.HostPortEnd)
	}
	if b.HostIP != "" {
		addr, err := netip.ParseAddr(b.HostIP)
		if err != nil || addr.Zone() != "" {
			return wish{}, fmt.Errorf("host address %q is no address", b.HostIP)
		}
		w.HostIP = addr.Unmap()
	}
	return w, nil
}

// wantsPorts reports whether the container has ports to publish. Whether it is
// on this network that they are is told by ProgramExternalConnectivity.
func wantsPorts(o rawOptions) bool {
	wishes, err := parsePortMap(o[optPortMap])
	return err == nil && len(wishes) > 0
}

// programExternalConnectivity publishes the container's ports: exactly these,
// whatever was published before.
func (d *Driver) programExternalConnectivity(ctx context.Context, req sandboxRequest) (struct{}, error) {
	wishes, err := parsePortMap(req.Options[optPortMap])
	if err != nil {
		return struct{}{}, err
	}
	unlock, err := d.lockEndpoint(ctx, req.EndpointID)
	if err != nil {
		return struct{}{}, err
	}
	defer unlock()
	e, ok := d.store.Endpoint(req.EndpointID)
	if len(wishes) == 0 {
		if !ok { // Docker up to 27 does this for endpoints that it lost itself
			return struct{}{}, nil
		}
		return struct{}{}, d.unpublish(ctx, e)
	}
	if !ok {
		return struct{}{}, fmt.Errorf("endpoint %s is not known to eipnet (is its state gone?): start the container again", model.ShortID(req.EndpointID))
	}
	if e.Phase != model.Joined {
		return struct{}{}, fmt.Errorf("publishing ports of %s: it is not connected", e.Name())
	}
	if n, ok := d.store.Network(e.NetworkID); ok {
		if n.Internal { // as Docker's bridge: nothing comes in there
			return struct{}{}, d.unpublish(ctx, e)
		}
		bindDefault(wishes, n.HostBinding, e)
	}
	wishes, err = d.settleHostIPs(ctx, e, wishes)
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, d.publish(ctx, e, wishes)
}

// bindDefault gives the network's host address to wishes without one. As on
// Docker's bridge, 0.0.0.0 stands for [::], too, as far as the host has that.
func bindDefault(wishes []wish, addr netip.Addr, e model.Endpoint) {
	if !addr.IsValid() {
		return
	}
	for i := range wishes {
		w := &wishes[i]
		if w.HostIP.IsValid() {
			continue
		}
		w.HostIP, w.Default = addr, true
		switch {
		case !addr.IsUnspecified():
		case e.Addr4.IsValid():
			w.Both = true
		default:
			w.HostIP = netip.IPv6Unspecified()
		}
	}
}

// settleHostIPs puts private addresses in the place of EIPs, and refuses host
// addresses on which nothing could ever come in. It returns the wishes that are
// this endpoint's to fulfil.
func (d *Driver) settleHostIPs(ctx context.Context, e model.Endpoint, wishes []wish) ([]wish, error) {
	if !slices.ContainsFunc(wishes, func(w wish) bool { return w.HostIP.IsValid() }) {
		return wishes, nil
	}
	up := d.labels.Up()
	host, err := d.core.Host(ctx)
	if err != nil && up {
		return nil, fmt.Errorf("looking at this host's addresses: %w", err)
	}
	eips := d.core.EIPs()
	var mine []wish
	for _, w := range wishes {
		ip := w.HostIP
		if !ip.IsValid() {
			mine = append(mine, w)
			continue
		}
		if private, ok := eips[ip]; ok && !slices.Contains(host.Locals, ip) {
			ip, w.HostIP = private, private
		}
		proxied := ip.Is6() && (host.IPv6 || !up) && w.Proto != model.SCTP && !d.siblingHas(e, model.IPv6) // to the container's IPv4
		if _, ok := e.Addr(model.FamilyOf(ip)); !ok && !proxied {
			if w.Default || d.siblingHas(e, model.FamilyOf(ip)) {
				continue // Docker does not either; or it asks both, and that one does it
			}
			return nil, fmt.Errorf("publishing port %d on %v: the container has no %v address on this network", w.Port, ip, model.FamilyOf(ip))
		}
		switch {
		case ip == netip.IPv6Loopback() && w.Proto == model.SCTP:
			return nil, fmt.Errorf("host address %v: there is no proxy for SCTP; use 127.0.0.1 or the address of a NIC: %s", ip, host.NICList())
		case ip.IsLoopback(), ip.IsUnspecified(), slices.Contains(host.Locals, ip):
		case !up: // the address may still come
			d.log.Warn("a published address is not on this host yet", append(endpointAttrs(e), slog.String("address", ip.String()))...)
		default:
			return nil, fmt.Errorf("host address %v is neither on this host nor a known EIP (--eip); its addresses: %s", ip, addressList(host.Locals))
		}
		mine = append(mine, w)
	}
	return mine, nil
}

// siblingHas reports whether the endpoint's container has an address of the
// family on another network, where its ports may be: an internal one has none.
func (d *Driver) siblingHas(e model.Endpoint, f model.Family) bool {
	return slices.ContainsFunc(d.store.Endpoints(), func(o model.Endpoint) bool {
		if _, has := o.Addr(f); !has || !sibling(o, e) {
			return false
		}
		n, _ := d.store.Network(o.NetworkID)
		return !n.Internal
	})
}

// sibling reports whether two endpoints are one container's, on two networks.
func sibling(a, b model.Endpoint) bool {
	return a.Container.ID != "" && a.Container.ID == b.Container.ID && a.NetworkID != b.NetworkID && a.Phase != model.Left
}

// addressList renders the addresses that a port can be published on.
func addressList(addrs []netip.Addr) string {
	addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	var parts []string
	for _, a := range addrs {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			parts = append(parts, a.String())
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(slices.Compact(parts), ", ")
}

// publish stores host ports for the wishes and has them reserved.
func (d *Driver) publish(ctx context.Context, e model.Endpoint, wishes []wish) error {
	tried := make(map[model.Publish]bool)
	for attempt := 1; ; attempt++ {
		if err := d.choose(ctx, &e, wishes, tried); err != nil {
			d.unpublishAfterError(ctx, e)
			return err
		}
		if err := d.core.Sync(ctx); err != nil {
			err = fmt.Errorf("publishing ports of %s: %w", e.Name(), err)
			if !d.labels.Up() {
				d.log.Warn("ports are not published yet", append(endpointAttrs(e), slog.Any("err", err))...)
				return nil
			}
			d.unpublishAfterError(ctx, e)
			return err
		}
		err := d.core.PortError(e.ID)
		if err == nil {
			d.log.Info("published ports", append(endpointAttrs(e), slog.Any("ports", e.Publishes))...)
			return nil
		}
		if attempt == pickAttempts || ctx.Err() != nil || !slices.ContainsFunc(wishes, func(w wish) bool { return !w.fixed() }) {
			d.unpublishAfterError(ctx, e)
			return err
		}
		e.Publishes = nil // and not the same again
	}
}

// choose gives every wish a host port and stores them. What the endpoint has
// already is kept, as is what its container has on another network; what was
// tried is not tried again.
func (d *Driver) choose(ctx context.Context, e *model.Endpoint, wishes []wish, tried map[model.Publish]bool) error {
	d.ports.Lock()
	defer d.ports.Unlock()
	var taken []model.Publish
	had := slices.Clone(e.Publishes)
	for _, o := range d.store.Endpoints() {
		switch {
		case o.ID == e.ID:
		case sibling(o, *e):
			had = append(had, o.Publishes...) // the same ports, for the other family
		default:
			taken = append(taken, o.Publishes...)
		}
	}
	var got []model.Publish
	for _, w := range wishes {
		clash := func(with []model.Publish, port uint16) bool {
			return slices.ContainsFunc(w.publishes(port), func(p model.Publish) bool {
				return slices.ContainsFunc(with, func(o model.Publish) bool { return samePort(o, p) })
			})
		}
		free := func(port uint16) bool {
			return !tried[w.publish(port)] && !clash(taken, port) && !clash(got, port)
		}
		kept := func(p model.Publish) bool {
			return w.grantedBy(p) && !tried[p] && !clash(got, p.HostPort)
		}
		var port uint16
		switch i := slices.IndexFunc(had, kept); {
		case w.fixed():
			port = w.First
			for _, p := range w.publishes(port) {
				if slices.ContainsFunc(got, func(o model.Publish) bool { return contradict(o, p) }) {
					return bindError(p.HostIP, p.HostPort)
				}
			}
		case i >= 0:
			port = had[i].HostPort
			tried[had[i]] = true
		default:
			var err error
			if port, err = Pick(w.Proto, w.picked(), d.candidates(ctx, w), free); err != nil {
				return err
			}
			if w.First == 0 {
				d.dynamic[w.where()] = port
			}
			tried[w.publish(port)] = true
		}
		got = append(got, w.publishes(port)...)
	}
	return d.update(e, func(e *model.Endpoint) { e.Publishes = got })
}

// contradict reports whether one container asked for the same host port twice,
// for different ports of its own.
func contradict(a, b model.Publish) bool {
	return a.Port != b.Port && samePort(a, b)
}

// samePort reports whether two publishes may be on the same port of the same
// address. Where no host address was given it is not known yet: they may.
func samePort(a, b model.Publish) bool {
	if a.Proto != b.Proto || a.HostPort != b.HostPort {
		return false
	}
	if !a.HostIP.IsValid() || !b.HostIP.IsValid() {
		return true
	}
	return model.FamilyOf(a.HostIP) == model.FamilyOf(b.HostIP) && (a.HostIP == b.HostIP || a.HostIP.IsUnspecified() || b.HostIP.IsUnspecified())
}

// unpublish removes the endpoint's ports, if it has any.
func (d *Driver) unpublish(ctx context.Context, e model.Endpoint) error {
	if now, ok := d.store.Endpoint(e.ID); !ok || len(now.Publishes) == 0 {
		return nil
	}
	if err := d.update(&e, func(e *model.Endpoint) { e.Publishes = nil }); err != nil {
		return err
	}
	if err := d.core.Sync(ctx); err != nil {
		return fmt.Errorf("removing the ports of %s: %w", e.Name(), err)
	}
	return nil
}

// unpublishAfterError does it when the call's time may be over. That it failed
// too is logged: the person is to read why the ports were refused.
func (d *Driver) unpublishAfterError(ctx context.Context, e model.Endpoint) {
	ctx, cancel := undo(ctx)
	defer cancel()
	if err := d.unpublish(ctx, e); err != nil {
		d.log.Warn("taking ports back failed", append(endpointAttrs(e), slog.Any("err", err))...)
	}
}

// revokeExternalConnectivity unpublishes the container's ports.
func (d *Driver) revokeExternalConnectivity(ctx context.Context, req endpointRequest) (struct{}, error) {
	unlock, err := d.lockEndpoint(ctx, req.EndpointID)
	if err != nil {
		return struct{}{}, err
	}
	defer unlock()
	e, ok := d.store.Endpoint(req.EndpointID)
	if !ok || len(e.Publishes) == 0 {
		return struct{}{}, nil
	}
	if err := d.unpublish(ctx, e); err != nil {
		d.log.Error("revoking ports failed", append(endpointAttrs(e), slog.Any("err", err))...)
		return struct{}{}, nil
	}
	d.log.Info("revoked ports", endpointAttrs(e)...)
	return struct{}{}, nil
}
