package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wire makes the namespaces' links, addresses and routes. The host's come last, so that the fabric's
// check is in force before the host can send its first frame.
func (l *Lab) wire(ctx context.Context) error {
	if err := l.fabric.sysctl(
		"net.ipv4.ip_forward", "1", "net.ipv6.conf.all.forwarding", "1", "net.ipv6.conf.default.forwarding", "1",
		"net.ipv4.conf.all.rp_filter", "0", "net.ipv4.conf.default.rp_filter", "0",
		"net.ipv4.conf.all.send_redirects", "0", "net.ipv4.conf.default.send_redirects", "0",
		"net.ipv6.conf.default.accept_dad", "0", "net.ipv6.conf.all.accept_dad", "0",
	); err != nil {
		return err
	}
	if err := l.Site.ns.sysctl("net.ipv6.conf.all.accept_dad", "0", "net.ipv6.conf.default.accept_dad", "0"); err != nil {
		return err
	}
	rp := l.cfg.RPFilter
	if err := l.Host.ns.sysctl("net.ipv4.ip_forward", "0",
		"net.ipv4.conf.all.rp_filter", rp, "net.ipv4.conf.default.rp_filter", rp); err != nil {
		return err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"site", l.wireSite},
		{"ports", l.wirePorts},
		{"fabric rules", func() error { return l.nft(ctx, l.fabricRules()) }},
		{"fabric", l.wireFabric},
		{"host", l.wireHost},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("wiring the %s: %w", s.what, err)
		}
	}
	return nil
}

// cable makes a veth pair whose ends are born in two namespaces.
func cable(a *netNS, aName string, aMAC net.HardwareAddr, b *netNS, bName string) error {
	return a.links(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = aName, aMAC
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd())}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding veth %s (%s) – %s (%s): %w", aName, a.name, bName, b.name, err)
		}
		return nil
	})
}

// linkUp gives a link its addresses (without duplicate address detection) and sets it up. Addresses that
// are there already are fine.
func linkUp(h *netlink.Handle, name string, addrs ...netip.Prefix) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", name, err)
	}
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrReplace(link, a); err != nil {
			return nil, fmt.Errorf("adding %s to %s: %w", p, name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("setting %s up: %w", name, err)
	}
	return link, nil
}

// ipNet keeps the host bits: an address with its prefix length.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// routeAdd adds a route to dst (the zero Prefix: default) by a gateway.
func routeAdd(h *netlink.Handle, link netlink.Link, dst netip.Prefix, gw, src netip.Addr, table int) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Table: table}
	if dst.IsValid() {
		r.Dst = ipNet(dst.Masked())
	}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("adding route %s via %s dev %s: %w", dst, gw, link.Attrs().Name, err)
	}
	return nil
}

func (l *Lab) wireSite() error {
	if err := cable(l.Site.ns, siteLink, nil, l.fabric, sitePort); err != nil {
		return err
	}
	err := l.fabric.links(func(h *netlink.Handle) error {
		_, err := linkUp(h, sitePort, fabricSite, fabricSite2, fabricSite6)
		return err
	})
	if err != nil {
		return err
	}
	return l.Site.ns.links(func(h *netlink.Handle) error {
		link, err := linkUp(h, siteLink, netip.PrefixFrom(SiteAddr, 24), netip.PrefixFrom(SiteAddr2, 24), netip.PrefixFrom(SiteAddr6, 64))
		if err != nil {
			return err
		}
		return errors.Join(
			routeAdd(h, link, netip.Prefix{}, fabricSite.Addr(), SiteAddr, 0),
			routeAdd(h, link, netip.Prefix{}, fabricSite6.Addr(), SiteAddr6, 0))
	})
}

// wirePorts lays the cables between the host and the fabric, both ends down.
func (l *Lab) wirePorts() error {
	for _, n := range l.nics {
		if err := cable(l.Host.ns, n.Name, n.MAC, l.fabric, portOf(n.Name)); err != nil {
			return err
		}
	}
	return nil
}

// wireFabric gives the fabric its gateways and makes it deliver by address: every NIC's MAC is known for
// good (neighbour and, on the bridge, forwarding entry), so that nothing the host says changes it.
func (l *Lab) wireFabric() error {
	return l.fabric.links(func(h *netlink.Handle) error {
		if l.cfg.Shape == OneSubnet {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.HardwareAddr = bridge, net.HardwareAddr{0x02, 0x31, 0, 0, 0, 1}
			if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return fmt.Errorf("adding the subnet's bridge: %w", err)
			}
		}
		for _, n := range l.nics {
			if err := l.wirePort(h, n); err != nil {
				return fmt.Errorf("port of %s: %w", n.Name, err)
			}
		}
		return nil
	})
}

// wirePort makes a NIC's port ready, and its router where the port is one. It may be done again.
func (l *Lab) wirePort(h *netlink.Handle, n NIC) error {
	gateways := []netip.Prefix{netip.PrefixFrom(n.Gateway, n.Addr.Bits()), netip.PrefixFrom(n.Gateway6, n.Addr6.Bits())}
	if n.Addr.Contains(SecondRouter) {
		gateways = append(gateways, netip.PrefixFrom(SecondRouter, n.Addr.Bits()))
	}
	port, router := portOf(n.Name), portOf(n.Name)
	if l.cfg.Shape == OneSubnet {
		router = bridge
		link, err := linkUp(h, port)
		if err != nil {
			return err
		}
		subnet, err := h.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("finding the subnet's bridge: %w", err)
		}
		if err := h.LinkSetMaster(link, subnet); err != nil {
			return fmt.Errorf("adding the port to the bridge: %w", err)
		}
		fdb := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
			State: netlink.NUD_NOARP, HardwareAddr: n.MAC,
		}
		if err := h.NeighSet(fdb); err != nil {
			return fmt.Errorf("adding the forwarding entry of %s: %w", n.MAC, err)
		}
	}
	link, err := linkUp(h, router, gateways...)
	if err != nil {
		return err
	}
	for _, p := range n.prefixes() {
		neigh := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: p.Addr().AsSlice(), HardwareAddr: n.MAC}
		if err := h.NeighSet(neigh); err != nil {
			return fmt.Errorf("adding neighbour %s: %w", p.Addr(), err)
		}
		if p.IsSingleIP() {
			r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p), Scope: netlink.SCOPE_LINK}
			if p.Addr().Is6() {
				r.Scope = netlink.SCOPE_UNIVERSE
			}
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("adding route to %s: %w", p, err)
			}
		}
	}
	return nil
}

// wireHost configures the host as a usual cloud image does: addresses on all NICs, and a default route
// by eth0 only.
func (l *Lab) wireHost() error {
	return l.Host.ns.links(func(h *netlink.Handle) error {
		for _, n := range l.nics {
			if err := l.configureNIC(h, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// configureNIC does what a cloud image's network configuration does for one NIC.
func (l *Lab) configureNIC(h *netlink.Handle, n NIC) error {
	if err := l.Host.ns.sysctl("net.ipv4.conf."+n.Name+".rp_filter", l.cfg.RPFilter); err != nil {
		return err
	}
	link, err := linkUp(h, n.Name, n.prefixes()...)
	if err != nil || n.Name != l.nics[0].Name {
		return err
	}
	return errors.Join(routeAdd(h, link, netip.Prefix{}, n.Gateway, netip.Addr{}, 0),
		routeAdd(h, link, netip.Prefix{}, n.Gateway6, netip.Addr{}, 0))
}
