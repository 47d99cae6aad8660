package route

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// defaultMetric6 is what the kernel makes of an IPv6 metric of 0 (IP6_RT_PRIO_USER).
const defaultMetric6 = 1024

// kernelRoute is a route as listed. exact is false where it says something
// that a plan.Route cannot.
type kernelRoute struct {
	route  plan.Route
	exact  bool
	kernel netlink.Route
}

// slot is what the kernel tells routes of one table apart by.
type slot struct {
	family model.Family
	table  model.Table
	dst    netip.Prefix
	metric int
}

func slotOf(r plan.Route) slot { return slot{r.Family, r.Table, r.Dst, r.Metric} }

// canonicalRoutes brings routes into the form that the kernel lists, sorted
// in the order of adding, without duplicates.
func canonicalRoutes(routes []plan.Route) []plan.Route {
	out := make([]plan.Route, 0, len(routes))
	for _, r := range routes {
		out = append(out, canonicalRoute(r))
	}
	slices.SortFunc(out, compareRoutes)
	seen := make(map[plan.Route]bool, len(out))
	return slices.DeleteFunc(out, func(r plan.Route) bool {
		dup := seen[r]
		seen[r] = true
		return dup
	})
}

func canonicalRoute(r plan.Route) plan.Route {
	r.Dst = r.Dst.Masked()
	if r.Family == model.IPv6 && r.Metric == 0 {
		r.Metric = defaultMetric6
	}
	if r.Unreachable {
		r.Dev, r.Via, r.Src = "", netip.Addr{}, netip.Addr{}
	}
	return r
}

// toKernelRoute renders a route:
//
//	default via 172.31.0.1 dev eth0 proto 201 onlink
//	172.31.0.0/20 dev eth0 proto 201 scope link src 172.31.0.8
//	unreachable default proto 201 metric 4294967295
//
// Gateways are always onlink: they need not lie in a subnet of the NIC (as in
// clouds that give out /32s), nor does the order of routes matter then.
func toKernelRoute(r plan.Route, index int) *netlink.Route {
	k := &netlink.Route{
		Family:   int(family(r.Family)),
		Table:    int(r.Table),
		Dst:      ipNet(r.Dst),
		Priority: r.Metric,
		Protocol: model.Protocol,
		Type:     unix.RTN_UNICAST,
	}
	if r.Unreachable {
		k.Type = unix.RTN_UNREACHABLE
		return k
	}
	k.LinkIndex = index
	if r.Src.IsValid() {
		k.Src = r.Src.AsSlice()
	}
	switch {
	case r.Via.IsValid():
		k.Gw = r.Via.AsSlice()
		k.Flags = int(netlink.FLAG_ONLINK)
	case r.Family == model.IPv4:
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

// fromKernelRoute is the inverse of toKernelRoute. Devices that no wanted
// route names have no name here; their routes are never exact.
func fromKernelRoute(k netlink.Route, names map[int]string) kernelRoute {
	r := plan.Route{Family: model.IPv4, Table: model.Table(k.Table), Dst: prefix(k.Dst), Metric: k.Priority}
	if k.Family == unix.AF_INET6 {
		r.Family = model.IPv6
	}
	out := kernelRoute{kernel: k, exact: k.Tos == 0 && k.Encap == nil && k.Via == nil && len(k.MultiPath) == 0}
	switch k.Type {
	case unix.RTN_UNREACHABLE:
		r.Unreachable = true
	case unix.RTN_UNICAST:
		r.Dev = names[k.LinkIndex]
		r.Via, r.Src = addr(k.Gw), addr(k.Src)
		out.exact = out.exact && r.Dev != "" && k.Flags&int(netlink.FLAG_ONLINK) != 0 == r.Via.IsValid()
		if r.Family == model.IPv4 && !r.Via.IsValid() {
			out.exact = out.exact && k.Scope == netlink.SCOPE_LINK
		}
	default:
		out.exact = false
	}
	out.route = r
	return out
}

// listRoutes returns the routes of ours: with our protocol, and in one of our tables.
func (m *Manager) listRoutes(names map[int]string) ([]kernelRoute, error) {
	list, err := dump(func() ([]netlink.Route, error) {
		filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: model.Protocol}
		return m.routes.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, err
	}
	var out []kernelRoute
	for _, k := range list {
		ours := k.Table >= model.TableInside && k.Table <= model.TableNull
		if ours && (k.Family == unix.AF_INET || k.Family == unix.AF_INET6) {
			out = append(out, fromKernelRoute(k, names))
		}
	}
	return out, nil
}

// describeRoute renders a route as `ip route` does.
func describeRoute(r plan.Route) string {
	var b strings.Builder
	if r.Unreachable {
		b.WriteString("unreachable ")
	}
	if r.Dst.Bits() == 0 {
		b.WriteString("default")
	} else {
		b.WriteString(r.Dst.String())
	}
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Via)
	}
	if r.Dev != "" {
		fmt.Fprintf(&b, " dev %s", r.Dev)
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	fmt.Fprintf(&b, " table %d", r.Table)
	if r.Family == model.IPv6 {
		return "-6 " + b.String()
	}
	return b.String()
}

// ipNet converts at the library's border; IPv4 stays four bytes long.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), ones)
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
