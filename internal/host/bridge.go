package host

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// nullAlias marks the null device.
const nullAlias = "eipnet null device"

// bridge makes or mends the bridge of one network.
func (a *applying) bridge(want plan.BridgeLink) {
	alias := model.BridgeAlias + want.NetworkID
	l, there := a.t.byName[want.Name]
	switch {
	case there && !isOurs(l):
		a.failLink(want.Name, fmt.Errorf("making bridge %s: the name is in use by another link", want.Name))
		return
	case !there:
		if l = a.create(want.Name, alias, want.MTU); l == nil {
			return
		}
	case l.Attrs().Alias != alias:
		a.write(l, "naming the network of", a.handle.LinkSetAlias(l, alias))
	}
	if want.MTU != 0 && l.Attrs().MTU != want.MTU {
		a.write(l, "setting the MTU of", a.handle.LinkSetMTU(l, want.MTU))
	}
	a.switchOff(conf6(want.Name, "accept_ra"))
	// While its link-local address is being tried (it begins with the first
	// port, and takes a second or two) the bridge could ask for no neighbour.
	a.switchOff(conf6(want.Name, "accept_dad"))
	switch {
	case want.NoIPv6:
		a.switchTo(conf6(want.Name, "disable_ipv6"), "1")
	case slices.ContainsFunc(want.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }):
		a.switchOff(conf6(want.Name, "disable_ipv6"))
	}
	a.alwaysRouted(want.Name)
	a.addresses(l, want.Addrs)
	a.up(l)
}

// create adds a bridge that is down. Its MAC is given, so that it does not
// change with the ports, and is always the same, so that containers who know
// it find a bridge that was made again. If the alias that makes it ours cannot be set, the
// bridge is taken back.
func (a *applying) create(name, alias string, mtu int) netlink.Link {
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU, at.HardwareAddr = name, mtu, bridgeMAC(alias)
	br := &netlink.Bridge{LinkAttrs: at}
	if err := a.handle.LinkAdd(br); err != nil {
		a.failLink(name, fmt.Errorf("making bridge %s: %w", name, err))
		return nil
	}
	l, err := a.handle.LinkByName(name)
	if err != nil {
		a.failLink(name, fmt.Errorf("finding the new bridge %s: %w", name, err))
		return nil
	}
	if err := a.handle.LinkSetAlias(l, alias); err != nil {
		a.failLink(name, fmt.Errorf("naming bridge %s: %w", name, err))
		a.deleteLink(l)
		return nil
	}
	l.Attrs().Alias = alias
	a.t.byName[name] = l
	a.did("link " + name)
	a.log.Info("bridge made", slog.String("bridge", name))
	return l
}

// addresses adds what is missing and, with prune, removes other global ones.
func (a *applying) addresses(l netlink.Link, want []netip.Prefix) {
	var have []netip.Prefix
	for _, ad := range a.t.addrs[l.Attrs().Index] {
		p := prefix(ad.IPNet)
		if ad.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		if slices.Contains(want, p) {
			have = append(have, p)
			continue
		}
		if a.prune && a.write(l, "removing address "+p.String()+" of", a.handle.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})) {
			a.log.Info("address removed", slog.String("link", l.Attrs().Name), slog.String("address", p.String()))
		}
	}
	for _, p := range want {
		if slices.Contains(have, p) {
			continue
		}
		ad := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// Without a port, duplicate address detection would never end.
			ad.Flags = unix.IFA_F_NODAD
		}
		if a.write(l, "adding address "+p.String()+" to", a.handle.AddrReplace(l, ad)) {
			a.log.Info("address added", slog.String("link", l.Attrs().Name), slog.String("address", p.String()))
		}
	}
}

func (a *applying) deleteBridges(want []plan.BridgeLink) {
	for _, l := range a.t.links {
		wanted := slices.ContainsFunc(want, func(b plan.BridgeLink) bool { return b.Name == l.Attrs().Name })
		if !isOurs(l) || wanted {
			continue
		}
		a.deleteLink(l)
	}
}

// bridgeMAC returns a locally administered unicast address, the same for the same alias.
func bridgeMAC(alias string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(alias))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
