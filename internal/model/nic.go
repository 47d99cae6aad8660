package model

import (
	"net/netip"
	"slices"
)

// NIC is a host link that can carry traffic to the outside: a link that is no
// bridge, bridge port, tunnel or loopback (see internal/host for the exact test).
type NIC struct {
	Name     string
	Index    int
	MAC      string // lower case, colons
	Up       bool   // administratively up
	Carrier  bool   // the other side is there (IFF_LOWER_UP)
	Included bool   // --nics names it
	Primary  bool   // main's IPv4 default route (else its IPv6 one) leaves by it
	VRF      string // the VRF that it is in: its routes are there, and nothing in main; empty: none
	Addrs    []netip.Prefix
	Routes   []Route // of the main table, by this NIC, without default routes
	// Gateway4 and Gateway6 are next hops to the world; zero where none is known.
	Gateway4, Gateway6 Gateway
}

// Gateway is a next hop and how it came to be known ("route", "lease", …).
type Gateway struct {
	Addr   netip.Addr
	Source string
}

// Gateway returns the NIC's next hop in that family; its Addr is zero where none is known.
func (n NIC) Gateway(f Family) Gateway {
	if f == IPv6 {
		return n.Gateway6
	}
	return n.Gateway4
}

// Addr returns the NIC's first address of the family: the one that packets
// pinned to the NIC leave with, unless the selector names another.
func (n NIC) Addr(f Family) (netip.Addr, bool) {
	for _, p := range n.Addrs {
		if FamilyOf(p.Addr()) == f {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Has reports whether the address is one of the NIC's.
func (n NIC) Has(a netip.Addr) bool {
	return slices.ContainsFunc(n.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// FamilyOf returns the family of a valid address.
func FamilyOf(a netip.Addr) Family {
	if a.Is6() && !a.Is4In6() {
		return IPv6
	}
	return IPv4
}

// Route is a route of the main table by one NIC, as far as it is copied into that NIC's table.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // zero: on the link
	Src    netip.Addr // preferred source, zero: none
	Metric int
}

// Bridge is a container bridge of the host: one of ours, or one that Docker made.
type Bridge struct {
	Name    string
	Subnets []Subnet
}

// Subnet is what a bridge serves, and the bridge's own address in it.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr // zero: the bridge has none
}

// Switches of br_netfilter, which are there when it is loaded: what is bridged
// passes the firewall.
const (
	SysctlBridged4 = "net/bridge/bridge-nf-call-iptables"
	SysctlBridged6 = "net/bridge/bridge-nf-call-ip6tables"
)

// Host is what was observed of the host in one pass.
type Host struct {
	NICs []NIC // sorted by name
	// Unmatched are names and globs of --nics that are no NIC's, as they were given.
	Unmatched []string
	Bridges   []Bridge // Docker's container bridges, not ours; sorted by name
	Locals    []netip.Addr
	Links     []string // names of all links
	// Routed are the destinations of the host's routes, in any table and
	// without default routes; not those of container bridges.
	Routed []netip.Prefix
	// Peers are the MAC addresses behind ports of stock bridges that concern
	// us, by port, as they were when the port was first seen.
	Peers map[string]string
	IPv6  bool // the kernel has IPv6
	// Sysctls holds the present values of the switches that plan asks about,
	// by path below /proc/sys ("net/ipv4/conf/eth1/rp_filter").
	Sysctls map[string]string
	// ForwardingOurs, Forwarding6Ours: eipnet, not Docker or the administrator,
	// switched net.ipv4.ip_forward, or net.ipv6.conf.all.forwarding, on.
	ForwardingOurs, Forwarding6Ours bool
	// Advertised are links on which router advertisements may count (where
	// accept_ra is 1 they do so only as long as nothing is forwarded); sorted.
	Advertised []string
}

// NIC returns the NIC with that name.
func (h Host) NIC(name string) (NIC, bool) {
	i := slices.IndexFunc(h.NICs, func(n NIC) bool { return n.Name == name })
	if i < 0 {
		return NIC{}, false
	}
	return h.NICs[i], true
}
