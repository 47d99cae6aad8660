package lab

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// Shape says how the host's NICs are spread over the cloud's subnets.
type Shape int

const (
	// OneSubnet puts all NICs into one layer 2: the usual cloud case, ARP flux included.
	OneSubnet Shape = iota
	// ThreeSubnets gives every NIC a subnet and a gateway of its own.
	ThreeSubnets
)

// String names the shape as labctl's flag does.
func (s Shape) String() string {
	if s == ThreeSubnets {
		return "three"
	}
	return "one"
}

// NIC is one network card of the host, with all that the cloud knows of it.
type NIC struct {
	Name     string
	MAC      net.HardwareAddr
	Addr     netip.Prefix // private IPv4 address and its subnet
	Gateway  netip.Addr
	EIP      netip.Addr // public IPv4 address that the fabric maps to Addr
	Addr6    netip.Prefix
	Gateway6 netip.Addr
	Extra    []netip.Prefix // more addresses of this NIC, either family
}

// Public addresses of the site, and what the fabric's ports to it have.
var (
	// SiteAddr is where the site's services listen.
	SiteAddr = netip.MustParseAddr("198.51.100.10")
	// SiteAddr2 is a second address of the same site, for tests that tell destinations apart.
	SiteAddr2 = netip.MustParseAddr("203.0.113.10")
	// SiteAddr6 is the site's IPv6 address.
	SiteAddr6 = netip.MustParseAddr("2001:db8:100::10")

	fabricSite  = netip.MustParsePrefix("198.51.100.1/24")
	fabricSite2 = netip.MustParsePrefix("203.0.113.1/24")
	fabricSite6 = netip.MustParsePrefix("2001:db8:100::1/64")
)

// SecondRouter is another router address in eth0's subnet, the next hop of AddStaticClient's route.
var SecondRouter = netip.MustParseAddr("172.31.0.2")

const (
	sitePort  = "site"   // the fabric's link to the site
	bridge    = "subnet" // the fabric's bridge in OneSubnet
	siteLink  = "eth0"   // the site's link to the fabric
	portStart = "port-"  // the fabric's port of NIC eth1 is port-eth1
)

// portOf names the fabric's end of a NIC's cable.
func portOf(nic string) string { return portStart + nic }

// nicsOf lists the host's NICs in order. The addresses are those of the article that eipnet answers.
func nicsOf(shape Shape, extra map[string][]netip.Prefix) ([]NIC, error) {
	type row struct{ name, addr, gw, eip, addr6, gw6 string }
	rows := []row{
		{"eth0", "172.31.0.8/20", "172.31.0.1", "109.25.48.65", "2001:db8:31::8/64", "2001:db8:31::1"},
		{"eth1", "172.31.0.14/20", "172.31.0.1", "119.26.38.75", "2001:db8:31::14/64", "2001:db8:31::1"},
		{"eth2", "172.31.0.21/20", "172.31.0.1", "129.27.28.85", "2001:db8:31::21/64", "2001:db8:31::1"},
	}
	if shape == ThreeSubnets {
		rows = []row{
			{"eth0", "172.31.0.8/24", "172.31.0.1", "109.25.48.65", "2001:db8:31:0::8/64", "2001:db8:31:0::1"},
			{"eth1", "172.31.16.14/24", "172.31.16.1", "119.26.38.75", "2001:db8:31:10::14/64", "2001:db8:31:10::1"},
			{"eth2", "172.31.32.21/24", "172.31.32.1", "129.27.28.85", "2001:db8:31:20::21/64", "2001:db8:31:20::1"},
		}
	}
	var nics []NIC
	for _, r := range rows {
		addr := netip.MustParsePrefix(r.addr)
		last := addr.Addr().As4()
		nics = append(nics, NIC{
			Name: r.name, MAC: net.HardwareAddr{0x02, 0x31, 0, 0, 0, last[3]},
			Addr: addr, Gateway: netip.MustParseAddr(r.gw), EIP: netip.MustParseAddr(r.eip),
			Addr6: netip.MustParsePrefix(r.addr6), Gateway6: netip.MustParseAddr(r.gw6),
			Extra: extra[r.name],
		})
	}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		if !slices.ContainsFunc(nics, func(n NIC) bool { return n.Name == name }) {
			return nil, fmt.Errorf("extra addresses for %q: the host has no such NIC", name)
		}
	}
	return nics, nil
}

// prefixes lists every address of the NIC with its prefix length.
func (n NIC) prefixes() []netip.Prefix {
	return append([]netip.Prefix{n.Addr, n.Addr6}, n.Extra...)
}

// addrs lists the NIC's own addresses of one family.
func (n NIC) addrs(v6 bool) []netip.Addr {
	var out []netip.Addr
	for _, p := range n.prefixes() {
		if p.Addr().Is6() == v6 {
			out = append(out, p.Addr())
		}
	}
	return out
}
