package snat

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// Names of the chains of table bridge eipnet that others go to.
const (
	chainOwn       = "own"
	chainClaims    = "claims"
	chainAddresses = "addresses"
	chainBound     = "bound-only"
)

// prioritySpoof is before all that looks into a bridged packet: ebtables'
// brouting aside, bridge NAT sits at -300 too, conntrack at -200 and
// br_netfilter, which runs the inet tables' rules, at 0. A frame that is
// dropped here teaches the bridge no MAC.
const prioritySpoof nftables.ChainPriority = -300

// ICMPv6 types, as IANA numbers them.
const (
	icmp6RouterAdvert    = 134
	icmp6NeighborSolicit = 135
	icmp6NeighborAdvert  = 136
	icmp6Redirect        = 137
)

// spoofSkeleton returns the chains of table bridge eipnet. There is no
// `meta ibrname` in them: kernels may lack it (CONFIG_NFT_BRIDGE_META), so
// whose frames are looked at is said by port.
func spoofSkeleton() []chain {
	return []chain{
		{name: chainOwn, rules: ownRules()},
		{name: chainAddresses, rules: addressRules()},
		{name: chainClaims, rules: claimRules()},
		{name: chainBound, rules: boundRules()},
		spoofPre(), spoofHost(),
	}
}

// spoofPre looks at what comes in by a listed port, wherever it goes.
//
//	chain spoof { type filter hook prerouting priority -300; policy accept;
//	  iifname @only goto own
//	  iifname @ports goto claims
//	}
func spoofPre() chain {
	return chain{"spoof", &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioritySpoof}, []rule{
		newRule("from-only", in("only", iifname()), jumpTo(chainOwn)),
		newRule("from-port", in("ports", iifname()), jumpTo(chainClaims)),
	}}
}

// spoofHost looks at what is handed up to the host. Frames to the reserved
// group addresses go there past prerouting, and teach MACs on the way. (Those
// to 01:80:c2:00:00:0e, LLDP's, pass no hook at all, unless bit 14 of the
// bridge's group_fwd_mask is set. None of them is routed.)
// From a port that is not listed, a container's of a second ago or another
// bridge's, nothing gets to the host, and so to a NIC, with a claimed address.
// From a pinned or held container's port nothing does with an address that is
// not its own; what such a container sends to its neighbours stays as it is.
//
//	chain spoof-host { type filter hook input priority -300; policy accept;
//	  ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 iifname @only goto own
//	  ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 iifname @ports goto claims
//	  iifname @bound goto bound-only
//	  iifname @ports accept
//	  goto addresses
//	}
func spoofHost() chain {
	return chain{"spoof-host", &hook{nftables.ChainTypeFilter, nftables.ChainHookInput, prioritySpoof}, []rule{
		newRule("group-only", toReservedGroup(), in("only", iifname()), jumpTo(chainOwn)),
		newRule("group-port", toReservedGroup(), in("ports", iifname()), jumpTo(chainClaims)),
		newRule("from-bound", in("bound", iifname()), jumpTo(chainBound)),
		newRule("seen", in("ports", iifname()), accept()),
		newRule("from-elsewhere", jumpTo(chainAddresses)),
	}}
}

// ownRules accept a port's own MAC and addresses and drop all else. Link-local
// sources pass: the kernel routes them nowhere. Router advertisements and
// redirects do not, since neighbours would believe them.
//
//	chain own {
//	  ether type vlan counter name "spoofed" drop
//	  ether type 8021ad counter name "spoofed" drop
//	  iifname . ether saddr != @portmac counter name "spoofed" drop
//	  meta protocol ip iifname . ip saddr @port4 accept
//	  meta protocol arp iifname . arp saddr ether @portmac arp saddr ip 0.0.0.0 accept
//	  meta protocol arp iifname . arp saddr ether @portmac iifname . arp saddr ip @port4 accept
//	  meta protocol ip6 icmpv6 type nd-router-advert counter name "spoofed" drop
//	  meta protocol ip6 icmpv6 type nd-redirect counter name "spoofed" drop
//	  meta protocol ip6 icmpv6 type nd-neighbor-advert icmpv6 taddr != fe80::/10 iifname . icmpv6 taddr != @port6 counter name "spoofed" drop
//	  meta protocol ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit icmpv6 taddr != fe80::/10 iifname . icmpv6 taddr != @port6 counter name "spoofed" drop
//	  meta protocol ip6 ip6 saddr fe80::/10 accept
//	  meta protocol ip6 ip6 saddr :: meta l4proto icmpv6 accept
//	  meta protocol ip6 iifname . ip6 saddr @port6 accept
//	  counter name "spoofed" drop
//	}
func ownRules() []rule {
	ip, ip6, arp := etherProtocol(unix.ETH_P_IP), etherProtocol(unix.ETH_P_IPV6), etherProtocol(unix.ETH_P_ARP)
	arpMAC := in("portmac", iifname(), arpSenderMAC())
	notOwnTarget := notIn("port6", iifname(), ndTarget())
	unspecified := equal(saddr(model.IPv6), make([]byte, 16))
	return []rule{
		newRule("own-tagged-q", tagged(unix.ETH_P_8021Q), count(CounterSpoofed), drop()),
		newRule("own-tagged-ad", tagged(unix.ETH_P_8021AD), count(CounterSpoofed), drop()),
		newRule("own-mac", notIn("portmac", iifname(), etherSaddr()), count(CounterSpoofed), drop()),
		newRule("own-ip", ip, in("port4", iifname(), saddr(model.IPv4)), accept()),
		newRule("own-arp-probe", arp, arpMAC, equal(arpSender(), make([]byte, 4)), accept()),
		newRule("own-arp", arp, arpMAC, in("port4", iifname(), arpSender()), accept()),
		newRule("own-advert-router", ip6, icmp6(icmp6RouterAdvert), count(CounterSpoofed), drop()),
		newRule("own-redirect", ip6, icmp6(icmp6Redirect), count(CounterSpoofed), drop()),
		newRule("own-advert", ip6, icmp6(icmp6NeighborAdvert), linkLocal(ndTarget(), expr.CmpOpNeq), notOwnTarget,
			count(CounterSpoofed), drop()),
		newRule("own-dad", ip6, unspecified, icmp6(icmp6NeighborSolicit), linkLocal(ndTarget(), expr.CmpOpNeq), notOwnTarget,
			count(CounterSpoofed), drop()),
		newRule("own-link-local", ip6, linkLocal(saddr(model.IPv6), expr.CmpOpEq), accept()),
		newRule("own-unspecified", ip6, unspecified, protocolICMP6(), accept()),
		newRule("own-ip6", ip6, in("port6", iifname(), saddr(model.IPv6)), accept()),
		newRule("own-rest", count(CounterSpoofed), drop()),
	}
}

// boundRules drop packets, not frames: ARP was judged in claims.
//
//	chain bound-only {
//	  meta protocol ip iifname . ip saddr != @port4 counter name "spoofed" drop
//	  meta protocol ip6 ip6 saddr fe80::/10 accept
//	  meta protocol ip6 ip6 saddr :: meta l4proto icmpv6 accept
//	  meta protocol ip6 iifname . ip6 saddr != @port6 counter name "spoofed" drop
//	}
func boundRules() []rule {
	ip6 := etherProtocol(unix.ETH_P_IPV6)
	return []rule{
		newRule("bound-ip", etherProtocol(unix.ETH_P_IP), notIn("port4", iifname(), saddr(model.IPv4)), count(CounterSpoofed), drop()),
		newRule("bound-link-local", ip6, linkLocal(saddr(model.IPv6), expr.CmpOpEq), accept()),
		newRule("bound-unspecified", ip6, equal(saddr(model.IPv6), make([]byte, 16)), protocolICMP6(), accept()),
		newRule("bound-ip6", ip6, notIn("port6", iifname(), saddr(model.IPv6)), count(CounterSpoofed), drop()),
	}
}

// claimRules drop what bears another port's MAC or address. The host takes a
// tag of VLAN 0 for none, and any number of them: behind the first one, which
// is off already where we look, the address is not where it should be.
//
//	chain claims {
//	  meta protocol vlan vlan id 0 counter name "spoofed" drop
//	  meta protocol 8021ad vlan id 0 counter name "spoofed" drop
//	  ether saddr @claimedmac iifname . ether saddr != @portmac counter name "spoofed" drop
//	  goto addresses
//	}
func claimRules() []rule {
	return []rule{
		newRule("nested-q", etherProtocol(unix.ETH_P_8021Q), vlanZero(), count(CounterSpoofed), drop()),
		newRule("nested-ad", etherProtocol(unix.ETH_P_8021AD), vlanZero(), count(CounterSpoofed), drop()),
		newRule("claimed-mac", in("claimedmac", etherSaddr()), notIn("portmac", iifname(), etherSaddr()),
			count(CounterSpoofed), drop()),
		newRule("claimed", jumpTo(chainAddresses)),
	}
}

// addressRules drop what bears another port's address. A solicitation may ask
// for any address, save that one without a source claims it.
//
//	chain addresses {
//	  meta protocol ip ip saddr @claimed4 iifname . ip saddr != @port4 counter name "spoofed" drop
//	  meta protocol arp arp saddr ip @claimed4 iifname . arp saddr ip != @port4 counter name "spoofed" drop
//	  meta protocol ip6 ip6 saddr @claimed6 iifname . ip6 saddr != @port6 counter name "spoofed" drop
//	  meta protocol ip6 icmpv6 type nd-neighbor-advert icmpv6 taddr @claimed6 iifname . icmpv6 taddr != @port6 counter name "spoofed" drop
//	  meta protocol ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit icmpv6 taddr @claimed6 iifname . icmpv6 taddr != @port6 counter name "spoofed" drop
//	}
func addressRules() []rule {
	ip6 := etherProtocol(unix.ETH_P_IPV6)
	foreign := func(f model.Family, address field) []expr.Any {
		return append(in(named("claimed", f), address), notIn(named("port", f), iifname(), address)...)
	}
	return []rule{
		newRule("claimed-ip", etherProtocol(unix.ETH_P_IP), foreign(model.IPv4, saddr(model.IPv4)), count(CounterSpoofed), drop()),
		newRule("claimed-arp", etherProtocol(unix.ETH_P_ARP), foreign(model.IPv4, arpSender()), count(CounterSpoofed), drop()),
		newRule("claimed-ip6", ip6, foreign(model.IPv6, saddr(model.IPv6)), count(CounterSpoofed), drop()),
		newRule("claimed-advert", ip6, icmp6(icmp6NeighborAdvert), foreign(model.IPv6, ndTarget()), count(CounterSpoofed), drop()),
		newRule("claimed-dad", ip6, equal(saddr(model.IPv6), make([]byte, 16)), icmp6(icmp6NeighborSolicit),
			foreign(model.IPv6, ndTarget()), count(CounterSpoofed), drop()),
	}
}

func etherSaddr() field   { return payload(expr.PayloadBaseLLHeader, 6, 6) }
func arpSenderMAC() field { return payload(expr.PayloadBaseNetworkHeader, 8, 6) }
func arpSender() field    { return payload(expr.PayloadBaseNetworkHeader, 14, 4) }

// ndTarget is the target of a neighbour solicitation or advertisement.
func ndTarget() field { return payload(expr.PayloadBaseTransportHeader, 8, 16) }

func payload(base expr.PayloadBase, offset, width uint32) field {
	return field{int(width), func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: width}
	}}
}

func equal(f field, value []byte) []expr.Any {
	return append(load(f), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})
}

// masked is `FIELD & MASK == VALUE`, or `!=`.
func masked(f field, mask []byte, op expr.CmpOp, value []byte) []expr.Any {
	return append(load(f),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: op, Register: 1, Data: value})
}

// etherProtocol is `meta protocol`: what is behind a VLAN tag, if there is one.
func etherProtocol(protocol uint16) []expr.Any {
	return equal(meta(expr.MetaKeyPROTOCOL, 2), port(protocol))
}

// tagged is `ether type`: the tag, if there is one.
func tagged(protocol uint16) []expr.Any {
	return equal(payload(expr.PayloadBaseLLHeader, 12, 2), port(protocol))
}

// vlanZero is `vlan id 0`, of the outermost tag.
func vlanZero() []expr.Any {
	return masked(payload(expr.PayloadBaseLLHeader, 14, 2), []byte{0x0f, 0xff}, expr.CmpOpEq, []byte{0, 0})
}

// linkLocal is `FIELD fe80::/10`.
func linkLocal(f field, op expr.CmpOp) []expr.Any {
	mask, value := make([]byte, 16), make([]byte, 16)
	copy(mask, []byte{0xff, 0xc0})
	copy(value, []byte{0xfe, 0x80})
	return masked(f, mask, op, value)
}

// toReservedGroup is `ether daddr 01:80:c2:00:00:00/44`, the addresses that no bridge forwards.
func toReservedGroup() []expr.Any {
	return masked(payload(expr.PayloadBaseLLHeader, 0, 6),
		[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}, expr.CmpOpEq, []byte{0x01, 0x80, 0xc2, 0, 0, 0})
}

func protocolICMP6() []expr.Any { return equal(l4proto(), []byte{unix.IPPROTO_ICMPV6}) }

func icmp6(kind byte) []expr.Any {
	return append(protocolICMP6(), equal(payload(expr.PayloadBaseTransportHeader, 0, 1), []byte{kind})...)
}
