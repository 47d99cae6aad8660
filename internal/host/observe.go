package host

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// noNICs are kinds of links that carry other links' traffic or lead nowhere.
var noNICs = map[string]bool{
	"bridge": true, "dummy": true, "ifb": true, "vrf": true, "nlmon": true, "netkit": true,
	"tun": true, "tuntap": true, "wireguard": true, "ppp": true, "xfrm": true, "vti": true, "vti6": true,
	"ipip": true, "ip6tnl": true, "sit": true, "gre": true, "gretap": true, "ip6gre": true, "ip6gretap": true,
	"erspan": true, "ip6erspan": true, "vxlan": true, "geneve": true, "bareudp": true, "gtp": true, "can": true, "vcan": true,
}

// wired are kinds of links that may get their first IPv6 address by router advertisements.
var wired = map[string]bool{"device": true, "vlan": true, "bond": true, "team": true}

// Observe reads the host. managed names the NICs that are managed now: only
// for them is a gateway looked for by asking the network, which takes at most
// 100 ms here; a later answer pokes. They count as NICs without an address, too.
func (h *Host) Observe(ctx context.Context, managed []string) (model.Host, error) {
	t, err := h.readAll(ctx)
	if err != nil {
		return model.Host{}, err
	}
	out := model.Host{IPv6: h.exists("net/ipv6"), Sysctls: make(map[string]string)}
	primary := h.primary(t)
	for _, l := range t.links {
		out.Links = append(out.Links, l.Attrs().Name)
		if h.isNIC(t, l, managed) {
			out.NICs = append(out.NICs, h.nic(t, l, primary))
		}
		if advertised(t, l) {
			out.Advertised = append(out.Advertised, l.Attrs().Name)
		}
		for _, a := range t.addrs[l.Attrs().Index] {
			out.Locals = append(out.Locals, addr(a.IP))
		}
	}
	for _, p := range h.o.Include {
		if !slices.ContainsFunc(out.NICs, func(n model.NIC) bool { return matches([]string{p}, n.Name) }) {
			out.Unmatched = append(out.Unmatched, p)
		}
	}
	slices.SortFunc(out.NICs, func(a, b model.NIC) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(out.Links)
	slices.Sort(out.Advertised)
	slices.SortFunc(out.Locals, netip.Addr.Compare)
	out.Locals = slices.Compact(out.Locals)
	out.Bridges = dockerBridges(t)
	out.Routed = routed(t)
	h.gateways(ctx, t, out.NICs, managed)
	h.readSysctls(t, &out)
	_, out.ForwardingOurs = h.original(sysctlKey(ipForward))
	_, out.Forwarding6Ours = h.original(sysctlKey(plan.Forwarding6))
	return out, nil
}

// advertised reports whether router advertisements by the link may be what the
// host's own IPv6 lives on: a link with a global address, whatever it is (the
// host's own bridge, a tunnel), or a device that may get its first one so.
func advertised(t *tables, l netlink.Link) bool {
	a := l.Attrs()
	switch {
	case a.Flags&net.FlagLoopback != 0, a.MasterIndex != 0:
		return false
	case t.inside[a.Index], isOurVeth(l), a.Name == model.NullDevice:
		return false
	}
	return wired[l.Type()] || len(usable(t.addrs[a.Index])) > 0
}

func (h *Host) isNIC(t *tables, l netlink.Link, managed []string) bool {
	a := l.Attrs()
	switch {
	case matches(h.o.Exclude, a.Name), a.Name == model.NullDevice, a.Flags&net.FlagLoopback != 0:
		return false
	case t.inside[a.Index], t.inside[a.MasterIndex], isOurVeth(l):
		return false
	case matches(h.o.Include, a.Name):
		return true
	case noNICs[l.Type()], a.EncapType != "ether" && a.EncapType != "infiniband":
		return false
	case t.bridges[a.MasterIndex]: // a bridge port
		return false
	}
	return slices.Contains(managed, a.Name) || len(usable(t.addrs[a.Index])) > 0
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, name)
		return ok
	})
}

// usable returns the addresses that packets to the world can leave with.
func usable(addrs []netlink.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		p := prefix(a.IPNet)
		if a.Scope != unix.RT_SCOPE_UNIVERSE || !p.Addr().IsGlobalUnicast() {
			continue
		}
		// In IPv4 the bit of IFA_F_TEMPORARY means IFA_F_SECONDARY.
		const bad = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
		if !isIPv4(a) && a.Flags&bad != 0 {
			continue
		}
		out = append(out, p)
	}
	return out
}

// oldestFirst orders the addresses so that the first one of a family is that to
// leave with: in IPv4 the kernel lists them so; in IPv6 it lists the newest
// first, and a private one (fd00::/8) leads nowhere if there is another.
func oldestFirst(addrs []netip.Prefix) []netip.Prefix {
	v4 := slices.IndexFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if v4 < 0 {
		return addrs
	}
	v6 := addrs[v4:]
	slices.Reverse(v6)
	private := func(p netip.Prefix) int {
		if p.Addr().IsPrivate() {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(v6, func(a, b netip.Prefix) int { return cmp.Compare(private(a), private(b)) })
	return addrs
}

func (h *Host) nic(t *tables, l netlink.Link, primary int) model.NIC {
	a := l.Attrs()
	n := model.NIC{
		Name: a.Name, Index: a.Index, MAC: a.HardwareAddr.String(),
		Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		VRF: t.vrfs[a.MasterIndex], Included: matches(h.o.Include, a.Name), Primary: a.Index == primary, Addrs: oldestFirst(usable(t.addrs[a.Index])),
	}
	for _, r := range t.routes {
		if r.LinkIndex == a.Index && r.Table == unix.RT_TABLE_MAIN && copied(r) {
			n.Routes = append(n.Routes, model.Route{Dst: prefix(r.Dst), Via: addr(r.Gw), Src: addr(r.Src), Metric: r.Priority})
		}
	}
	slices.SortFunc(n.Routes, func(a, b model.Route) int {
		return cmp.Or(
			cmp.Compare(model.FamilyOf(a.Dst.Addr()), model.FamilyOf(b.Dst.Addr())),
			a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dst.Bits(), b.Dst.Bits()),
			cmp.Compare(a.Metric, b.Metric), a.Via.Compare(b.Via), a.Src.Compare(b.Src))
	})
	n.Routes = slices.Compact(n.Routes)
	return n
}

// copied reports whether a route of main belongs into the NIC's own table.
func copied(r netlink.Route) bool {
	d := prefix(r.Dst)
	return d.IsValid() && d.Bits() > 0 && r.Via == nil && r.Tos == 0 && r.Encap == nil &&
		!d.Addr().IsLinkLocalUnicast() && !d.Addr().IsMulticast() && r.Flags&unix.RTM_F_CLONED == 0
}

// primary returns the index of the link of main's best default route that
// leaves by a NIC, in IPv4, else in IPv6; 0 if there is none.
func (h *Host) primary(t *tables) int {
	nics := make(map[int]bool)
	for _, l := range t.links {
		nics[l.Attrs().Index] = h.isNIC(t, l, nil)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		best, found := 0, (*netlink.Route)(nil)
		for i := range t.routes {
			r := &t.routes[i]
			if r.Family == family && r.Table == unix.RT_TABLE_MAIN && isDefault(*r) && nics[r.LinkIndex] &&
				(found == nil || r.Priority < found.Priority) {
				best, found = r.LinkIndex, r
			}
		}
		if found != nil {
			return best
		}
	}
	return 0
}

func isDefault(r netlink.Route) bool { return r.Dst != nil && prefix(r.Dst).Bits() == 0 }

func routed(t *tables) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range t.routes {
		if d := prefix(r.Dst); d.Bits() > 0 && !t.inside[r.LinkIndex] && d.Addr().IsGlobalUnicast() {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

var dockerBridge = regexp.MustCompile(`^(docker0|br-[0-9a-f]{12})$`)

func dockerBridges(t *tables) []model.Bridge {
	var out []model.Bridge
	for _, l := range t.links {
		a := l.Attrs()
		if !isDocker(l) {
			continue
		}
		b := model.Bridge{Name: a.Name}
		for _, p := range usable(t.addrs[a.Index]) {
			b.Subnets = append(b.Subnets, model.Subnet{Prefix: p.Masked(), Gateway: p.Addr()})
		}
		slices.SortFunc(b.Subnets, func(a, b model.Subnet) int {
			return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), a.Gateway.Compare(b.Gateway))
		})
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b model.Bridge) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// isDocker reports whether the link is a bridge by a name that Docker gives.
// One by a name of the user's choice is known from Docker's API only.
func isDocker(l netlink.Link) bool {
	return l.Type() == "bridge" && !isOurs(l) && dockerBridge.MatchString(l.Attrs().Name)
}

// isOurs reports whether the link is a network's bridge that eipnet made.
func isOurs(l netlink.Link) bool {
	return l.Type() == "bridge" && strings.HasPrefix(l.Attrs().Alias, model.BridgeAlias)
}
