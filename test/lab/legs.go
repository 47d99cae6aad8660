package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Leg is a client beside the site that the host reaches by something that is none of eipnet's business:
// what must not be disturbed. It has the site's services on its address.
type Leg struct {
	*Peer
	// Addr is the client's address.
	Addr netip.Addr
}

// The VPN leg: a tunnel-like link of the host, and a routing rule of somebody else.
const (
	VPNLink     = "tun0"
	VPNTable    = 52
	VPNPriority = 5270 // Tailscale's, just behind eipnet's own band
)

var (
	vpnHost   = netip.MustParsePrefix("10.99.0.1/30")
	vpnPeer   = netip.MustParsePrefix("10.99.0.2/30")
	vpnNet    = netip.MustParsePrefix("10.98.0.0/24")
	vpnClient = netip.MustParseAddr("10.98.0.5")

	staticNet    = netip.MustParsePrefix("10.97.0.0/24")
	staticRouter = netip.MustParsePrefix("10.97.0.1/24")
	staticClient = netip.MustParsePrefix("10.97.0.5/24")
)

// AddVPNLeg gives the host a link tun0 with 10.99.0.1/30, and behind it the client 10.98.0.5, which the
// host reaches by a foreign rule only: priority 5270, from all lookup 52.
func (l *Lab) AddVPNLeg(ctx context.Context) (*Leg, error) {
	leg, err := l.addLeg("vpn", vpnClient)
	if err != nil {
		return nil, err
	}
	if err := l.wireVPN(leg); err != nil {
		return nil, fmt.Errorf("adding the VPN leg: %w", err)
	}
	return leg, leg.serve(ctx, vpnClient)
}

func (l *Lab) wireVPN(leg *Leg) error {
	if err := cable(l.Host.ns, VPNLink, nil, leg.ns, siteLink); err != nil {
		return err
	}
	err := leg.ns.links(func(h *netlink.Handle) error {
		if _, err := linkUp(h, "lo", netip.PrefixFrom(vpnClient, vpnClient.BitLen())); err != nil {
			return err
		}
		link, err := linkUp(h, siteLink, vpnPeer)
		if err != nil {
			return err
		}
		return routeAdd(h, link, netip.Prefix{}, vpnHost.Addr(), vpnClient, 0)
	})
	if err != nil {
		return err
	}
	return l.Host.ns.links(func(h *netlink.Handle) error {
		link, err := linkUp(h, VPNLink, vpnHost)
		if err != nil {
			return err
		}
		if err := routeAdd(h, link, vpnNet, vpnPeer.Addr(), netip.Addr{}, VPNTable); err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Priority, rule.Table, rule.Family = VPNPriority, VPNTable, netlink.FAMILY_V4
		if err := h.RuleAdd(rule); err != nil {
			return fmt.Errorf("adding the rule %d: %w", VPNPriority, err)
		}
		return nil
	})
}

// AddStaticClient puts the client 10.97.0.5 behind a second router of eth0's subnet, which the host
// reaches by a static route of its main table: a private network that is peered with the cloud's. There
// is no address translation between the two.
func (l *Lab) AddStaticClient(ctx context.Context) (*Leg, error) {
	leg, err := l.addLeg("static", staticClient.Addr())
	if err != nil {
		return nil, err
	}
	if err := l.wireStatic(leg); err != nil {
		return nil, fmt.Errorf("adding the static client: %w", err)
	}
	return leg, leg.serve(ctx, staticClient.Addr())
}

func (l *Lab) wireStatic(leg *Leg) error {
	const port = "peered"
	if err := cable(l.fabric, port, nil, leg.ns, siteLink); err != nil {
		return err
	}
	err := l.fabric.links(func(h *netlink.Handle) error {
		_, err := linkUp(h, port, staticRouter)
		return err
	})
	if err != nil {
		return err
	}
	err = leg.ns.links(func(h *netlink.Handle) error {
		link, err := linkUp(h, siteLink, staticClient)
		if err != nil {
			return err
		}
		return routeAdd(h, link, netip.Prefix{}, staticRouter.Addr(), netip.Addr{}, 0)
	})
	if err != nil {
		return err
	}
	return l.Host.ns.links(func(h *netlink.Handle) error {
		link, err := h.LinkByName(l.nics[0].Name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", l.nics[0].Name, err)
		}
		return routeAdd(h, link, staticNet, SecondRouter, netip.Addr{}, 0)
	})
}

func (l *Lab) addLeg(name string, addr netip.Addr) (*Leg, error) {
	for _, leg := range l.legs {
		if leg.Name == name {
			return nil, errors.New("the lab has its " + name + " leg already")
		}
	}
	peer, err := newPeer(name)
	if err != nil {
		return nil, err
	}
	peer.from = addr
	leg := &Leg{Peer: peer, Addr: addr}
	l.legs = append(l.legs, leg)
	return leg, nil
}
