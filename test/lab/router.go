package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Advertise has every router of the fabric send one advertisement: NICs that accept it get an IPv6
// default route by the router's link-local address, as in clouds without DHCPv6. It names no prefix: the
// NICs keep the addresses that they have.
func (l *Lab) Advertise() error {
	routers := []string{bridge}
	if l.cfg.Shape != OneSubnet {
		routers = nil
		for _, n := range l.nics {
			routers = append(routers, portOf(n.Name))
		}
	}
	for _, name := range routers {
		if err := l.advertise(name); err != nil {
			return fmt.Errorf("advertising the router on %s: %w", name, err)
		}
	}
	return nil
}

func (l *Lab) advertise(router string) error {
	var mac net.HardwareAddr
	var from netip.Addr
	err := l.fabric.links(func(h *netlink.Handle) error {
		link, err := h.LinkByName(router)
		if err != nil {
			return fmt.Errorf("finding it: %w", err)
		}
		mac = link.Attrs().HardwareAddr
		addrs, err := h.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("listing its addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsLinkLocalUnicast() {
				from = ip
			}
		}
		if !from.IsValid() {
			return errors.New("it has no link-local address")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.fabric.Do(func() error { return sendFrame(router, frameAdvert(mac, from)) })
}

// frameAdvert is a router advertisement to all nodes: a default router for half an hour, and its MAC.
func frameAdvert(mac net.HardwareAddr, src netip.Addr) []byte {
	const lifetime, sourceLinkLayer = 1800, 1
	all := netip.MustParseAddr("ff02::1")
	icmp := []byte{134, 0, 0, 0, 64, 0}
	icmp = binary.BigEndian.AppendUint16(icmp, lifetime)
	icmp = append(icmp, 0, 0, 0, 0, 0, 0, 0, 0, sourceLinkLayer, 1)
	icmp = append(icmp, mac...)
	ends := slices.Concat(src.AsSlice(), all.AsSlice())
	pseudo := slices.Concat(ends, []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, ProtoICMPv6}, icmp)
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo))
	ip6 := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), ProtoICMPv6, 255}
	return slices.Concat(ether(mac, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 0x86dd), ip6, ends, icmp)
}

// checksum is the Internet checksum of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
