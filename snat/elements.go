package snat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// setSpec is a set's or map's name and type.
type setSpec struct {
	name     string
	key      []nftables.SetDatatype
	value    []nftables.SetDatatype // nil: a set, not a map
	interval bool
	bySource bool // the key begins with a container's address
	toSource bool // the value does
	cgroups  bool // only where there are chains for containers on the host's network
}

// about returns the container's address that an element says something about, if it does.
func (s setSpec) about(key, value string) string {
	switch {
	case s.bySource:
		return key[:s.key[0].Bytes]
	case s.toSource:
		return value[:s.value[0].Bytes]
	}
	return ""
}

func (s setSpec) verdicts() bool {
	return len(s.value) == 1 && s.value[0].GetNFTMagic() == nftables.TypeVerdict.GetNFTMagic()
}

// ranges reports whether the elements are ranges of concatenations, whose key
// is the first and the last one behind each other.
func (s setSpec) ranges() bool { return s.interval && len(s.key) > 1 }

// elements are a set's elements: key → value, both as the kernel has them. The
// value is empty in sets and a chain's name in verdict maps. The key of an
// interval is its first address and the one behind its last; the latter is
// missing where the interval ends at the last address there is.
type elements map[string]string

// setSpecs lists every set and map of the table, those of [cgroupSpecs] behind these.
//
//	set locked    { type ifname }            bridges under lock 1
//	set watched   { type ifname }            other bridges with a pinned container
//	set ours      { type ifname }            bridges of eipnet networks
//	set inside    { type ifname }            all container bridges; with local4 the loopback, too
//	set noforward { type nf_proto }          families of which nothing is forwarded but what containers send or get
//	set managed   { type ifname }            managed NICs, with an address or without
//	set nics      { type ifname }            those and the primary
//	set internal  { type ifname }            bridges of internal networks, Docker's too
//	set same      { type ifname . ifname }   each of our bridges with itself, where its containers may talk
//	set local4    { type ipv4_addr }         addresses of the host's own programs
//	set proxied6  { type ipv6_addr . inet_proto . inet_service }  ports that a proxy of ours has
//	set proxiedany6 { type inet_proto . inet_service }  and those that it has at all IPv6 addresses
//	set linklocal6 { type ipv6_addr; flags interval }  fe80::/10 and ::
//	map nicin, nicin-host { type ifname : verdict }   managed NIC → ct-N
//	map ctnic, ctnic-host { type mark : verdict }     N's mark → nic-N
//
// and for each family, here IPv4:
//
//	set own4, ours4, masq4, except4 { type ipv4_addr; flags interval }
//	set exceptby4 { type ipv4_addr . ipv4_addr; flags interval }
//	set self4    { type ipv4_addr . ipv4_addr }   each known source with itself
//	set known4, pinned4, blocked4 { type ipv4_addr }
//	set uplink4  { type ipv4_addr }            the addresses of all NICs
//	set nicaddr4 { type ifname . ipv4_addr }   every NIC, managed or not, with each of its addresses
//	set legit4   { type ipv4_addr . ifname . ipv4_addr }
//	map pin4     { type ipv4_addr : verdict }
//	map snat4    { type ipv4_addr . ifname : ipv4_addr }
//	map dnat4    { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//	map dnatany4 { type inet_proto . inet_service : ipv4_addr . inet_service }
func setSpecs() []setSpec {
	type types = []nftables.SetDatatype
	name, verdict := nftables.TypeIFName, types{nftables.TypeVerdict}
	specs := []setSpec{
		{name: "locked", key: types{name}},
		{name: "watched", key: types{name}},
		{name: "ours", key: types{name}},
		{name: "inside", key: types{name}},
		{name: "internal", key: types{name}},
		{name: "noforward", key: types{nftables.TypeNFProto}},
		{name: "managed", key: types{name}},
		{name: "nics", key: types{name}},
		{name: "same", key: types{name, name}},
		{name: "nicin", key: types{name}, value: verdict},
		{name: "nicin-host", key: types{name}, value: verdict},
		{name: "ctnic", key: types{nftables.TypeMark}, value: verdict},
		{name: "ctnic-host", key: types{nftables.TypeMark}, value: verdict},
	}
	specs = append(specs, setSpec{name: "local4", key: types{nftables.TypeIPAddr}})
	specs = append(specs,
		setSpec{name: "proxied6", key: types{nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService}},
		setSpec{name: "proxiedany6", key: types{nftables.TypeInetProto, nftables.TypeInetService}})
	specs = append(specs, setSpec{name: "linklocal6", key: types{nftables.TypeIP6Addr}, interval: true})
	for _, f := range model.Families {
		addr, proto, port := nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService
		if f == model.IPv6 {
			addr = nftables.TypeIP6Addr
		}
		specs = append(specs,
			setSpec{name: named("own", f), key: types{addr}, interval: true},
			setSpec{name: named("ours", f), key: types{addr}, interval: true},
			setSpec{name: named("masq", f), key: types{addr}, interval: true},
			setSpec{name: named("except", f), key: types{addr}, interval: true},
			setSpec{name: named("exceptby", f), bySource: true, key: types{addr, addr}, interval: true},
			setSpec{name: named("known", f), bySource: true, key: types{addr}},
			setSpec{name: named("self", f), bySource: true, key: types{addr, addr}},
			setSpec{name: named("pinned", f), bySource: true, key: types{addr}},
			setSpec{name: named("blocked", f), bySource: true, key: types{addr}},
			setSpec{name: named("uplink", f), key: types{addr}},
			setSpec{name: named("nicaddr", f), key: types{name, addr}},
			setSpec{name: named("legit", f), bySource: true, key: types{addr, name, addr}},
			setSpec{name: named("pin", f), bySource: true, key: types{addr}, value: verdict},
			setSpec{name: named("snat", f), bySource: true, key: types{addr, name}, value: types{addr}},
			setSpec{name: named("dnat", f), toSource: true, key: types{addr, proto, port}, value: types{addr, port}},
			setSpec{name: named("dnatany", f), toSource: true, key: types{proto, port}, value: types{addr, port}},
		)
	}
	return append(specs, cgroupSpecs()...)
}

// linkLocal6 are sources that never leave a link: neighbour discovery's.
func linkLocal6() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::/128")}
}

// renderElements returns the elements of every set. It refuses a firewall that
// contradicts itself, before anything of it reaches the kernel.
func renderElements(fw plan.Firewall) (map[string]elements, error) {
	r := renderer{sets: make(map[string]elements)}
	for _, s := range setSpecs() {
		if !s.cgroups || fw.Cgroups {
			r.sets[s.name] = make(elements)
		}
	}
	r.links(fw)
	for _, f := range model.Families {
		r.intervals(named("own", f), mergePrefixes(fw.Own, f))
		r.intervals(named("ours", f), mergePrefixes(fw.OurSubnets, f))
		r.intervals(named("masq", f), mergePrefixes(fw.Masqueraded, f))
		r.intervals(named("except", f), mergePrefixes(fw.Except, f))
	}
	r.intervals("linklocal6", mergePrefixes(linkLocal6(), model.IPv6))
	r.exceptions(fw.ExceptBy)
	managed := make(map[model.NICID]string, len(fw.NICs)) // its name
	for _, n := range fw.NICs {
		managed[n.ID] = n.Name
	}
	for _, s := range fw.Sources {
		r.source(s, managed)
	}
	for _, p := range fw.Forwards {
		r.forward(p)
	}
	if fw.Cgroups {
		r.groups(fw, managed)
	}
	return r.sets, errors.Join(r.errs...)
}

type renderer struct {
	sets map[string]elements
	errs []error
}

func (r *renderer) put(set string, value string, key ...[]byte) { r.sets[set][cat(key...)] = value }

func (r *renderer) fail(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

// link encodes an interface name, and refuses one that the kernel cannot have.
func (r *renderer) link(name string) []byte {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		r.fail("rendering interface %q: want a name of 1 to %d bytes", name, unix.IFNAMSIZ-1)
		return make([]byte, unix.IFNAMSIZ)
	}
	return ifname(name)
}

func (r *renderer) links(fw plan.Firewall) {
	for _, b := range fw.Locked {
		r.put("locked", "", r.link(b))
	}
	for _, b := range fw.Watched {
		r.put("watched", "", r.link(b))
	}
	for _, b := range fw.Ours {
		r.put("ours", "", r.link(b))
		if !slices.Contains(fw.Apart, b) {
			r.put("same", "", r.link(b), r.link(b))
		}
	}
	for _, b := range fw.Inside {
		r.put("inside", "", r.link(b))
	}
	for _, b := range fw.Internal {
		r.put("internal", "", r.link(b))
	}
	for _, a := range fw.Local {
		if !a.Is4() {
			r.fail("rendering an address of the host's programs, %v: want an IPv4 address", a)
			continue
		}
		r.put("local4", "", a.AsSlice())
	}
	for _, p := range fw.Proxied {
		switch {
		case !p.Addr.Is6():
			r.fail("rendering a proxy's port %d at %v: want an IPv6 address", p.Port, p.Addr)
		case p.Addr.IsUnspecified():
			r.put("proxiedany6", "", []byte{byte(p.Proto)}, port(p.Port))
		default:
			r.put("proxied6", "", p.Addr.AsSlice(), []byte{byte(p.Proto)}, port(p.Port))
		}
	}
	for _, f := range fw.NoForward {
		r.put("noforward", "", []byte{nfproto(f)})
	}
	for _, u := range fw.Uplinks {
		if a := u.Addr.Unmap().WithZone(""); a.IsValid() {
			r.put(named("uplink", model.FamilyOf(a)), "", a.AsSlice())
			r.put(named("nicaddr", model.FamilyOf(a)), "", r.link(u.NIC), a.AsSlice())
		}
	}
	if fw.Primary != "" {
		r.put("nics", "", r.link(fw.Primary))
	}
	for _, n := range fw.NICs {
		if n.ID == 0 || n.ID > model.MaxNICID {
			r.fail("rendering NIC %s: number %d is not in 1 to %d", n.Name, n.ID, model.MaxNICID)
			continue
		}
		mark := n32(uint32(fw.Mask.Of(n.ID)))
		r.put("managed", "", r.link(n.Name))
		r.put("nics", "", r.link(n.Name))
		r.put("nicin", ctChain(n.ID), r.link(n.Name))
		r.put("ctnic", nicChain(n.ID), mark)
		if n.HostReplies {
			r.put("nicin-host", ctChain(n.ID), r.link(n.Name))
			r.put("ctnic-host", nicChain(n.ID), mark)
		}
	}
}

func (r *renderer) source(s plan.Source, managed map[model.NICID]string) {
	addr := s.Addr.Unmap()
	if !addr.IsValid() {
		r.fail("rendering a source for NIC %d (%s) with address %v: it has no address itself", s.NIC, s.NICName, s.Address)
		return
	}
	f, key := model.FamilyOf(addr), addr.AsSlice()
	switch s.Verdict {
	case plan.Pending: // as what is in no set
	case plan.Blocked:
		r.put(named("blocked", f), "", key)
	case plan.ViaHost:
		r.put(named("known", f), "", key)
		r.put(named("self", f), "", key, key)
		r.put(named("pin", f), chainViaHost, key)
	case plan.Pinned:
		as := s.Address.Unmap()
		name, ok := managed[s.NIC]
		if !ok || name != s.NICName || !as.IsValid() || model.FamilyOf(as) != f {
			r.fail("rendering source %v: pinned to NIC %d (%s) with address %v: want a managed NIC and an %v address",
				addr, s.NIC, s.NICName, s.Address, f)
			return
		}
		r.put(named("known", f), "", key)
		r.put(named("self", f), "", key, key)
		r.put(named("pinned", f), "", key)
		r.put(named("pin", f), nicChain(s.NIC), key)
		r.put(named("snat", f), string(as.AsSlice()), key, ifname(name))
		r.put(named("legit", f), "", key, ifname(name), as.AsSlice())
	default:
		r.fail("rendering source %v: unknown verdict %d", addr, s.Verdict)
	}
}

func (r *renderer) forward(p plan.Forward) {
	host, to := p.Addr.Unmap(), p.To.Addr().Unmap()
	if !host.IsValid() || !to.IsValid() || model.FamilyOf(host) != model.FamilyOf(to) {
		r.fail("rendering port %v of %v to %v: want two addresses of one family", p.Port, p.Addr, p.To)
		return
	}
	f := model.FamilyOf(host)
	value := cat(to.AsSlice(), port(p.To.Port()))
	if host.IsUnspecified() {
		r.put(named("dnatany", f), value, []byte{byte(p.Proto)}, port(p.Port))
		return
	}
	r.put(named("dnat", f), value, host.AsSlice(), []byte{byte(p.Proto)}, port(p.Port))
}

// exceptions renders what each source is excepted from, merged by source.
func (r *renderer) exceptions(list []plan.Exception) {
	to := make(map[netip.Addr][]netip.Prefix)
	for _, e := range list {
		if !e.Source.IsValid() || !e.To.IsValid() {
			r.fail("rendering the exception of source %v from %v: want an address and a prefix", e.Source, e.To)
			continue
		}
		to[e.Source.Unmap()] = append(to[e.Source.Unmap()], e.To)
	}
	for src, prefixes := range to {
		f, key := model.FamilyOf(src), src.AsSlice()
		for _, i := range mergePrefixes(prefixes, f) {
			last := cat(key, i.last.AsSlice())
			r.put(named("exceptby", f), "", key, i.first.AsSlice(), []byte(last))
		}
	}
}

func (r *renderer) intervals(set string, list []interval) {
	for _, i := range list {
		r.put(set, "", i.key())
	}
}

// interval is a range of addresses of one family, both ends in it.
type interval struct{ first, last netip.Addr }

func (i interval) key() []byte {
	k := i.first.AsSlice()
	if end := i.last.Next(); end.IsValid() {
		k = append(k, end.AsSlice()...)
	}
	return k
}

// intervalOf is the reverse of key, for addresses of width bytes.
func intervalOf(key string, width int) interval {
	first, _ := netip.AddrFromSlice([]byte(key[:width]))
	if len(key) == width {
		last, _ := netip.AddrFromSlice(bytes.Repeat([]byte{0xff}, width))
		return interval{first, last}
	}
	end, _ := netip.AddrFromSlice([]byte(key[width:]))
	return interval{first, end.Prev()}
}

// mergePrefixes returns the prefixes of a family as ranges that neither
// overlap nor touch: the kernel merges nothing, and refuses what overlaps.
func mergePrefixes(prefixes []netip.Prefix, f model.Family) []interval {
	var list []interval
	for _, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p.IsValid() && model.FamilyOf(p.Addr()) == f {
			list = append(list, interval{p.Masked().Addr(), lastOf(p)})
		}
	}
	return mergeIntervals(list)
}

func mergeIntervals(list []interval) []interval {
	slices.SortFunc(list, func(a, b interval) int { return a.first.Compare(b.first) })
	var out []interval
	for _, i := range list {
		if n := len(out); n > 0 {
			prev := &out[n-1]
			if next := prev.last.Next(); !next.IsValid() || !next.Less(i.first) {
				if prev.last.Less(i.last) {
					prev.last = i.last
				}
				continue
			}
		}
		out = append(out, i)
	}
	return out
}

// lastOf returns a prefix's last address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		switch bits := p.Bits() - 8*i; {
		case bits <= 0:
			b[i] = 0xff
		case bits < 8:
			b[i] |= 0xff >> bits
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// cat joins the fields of a key or value. In a concatenation each is padded
// behind to four bytes, as the kernel's registers are; one alone is not.
func cat(fields ...[]byte) string {
	var out []byte
	for _, f := range fields {
		out = append(out, f...)
		for len(fields) > 1 && len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	return string(out)
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
