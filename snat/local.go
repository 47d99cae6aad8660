package snat

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// The host's own programs pass input and output, not prerouting and forward.

// ctInput remembers by which NIC the host itself was called, where its answers
// are to leave by it. To an address of a host entry nothing comes from outside
// but to its published ports.
//
//	chain ct-input { type filter hook input priority mangle; policy accept;
//	  ip daddr @local4 iifname != @inside ct direction original ct status & dnat == 0 counter name "isolated" drop
//	  ct state new ip daddr @local4 iifname vmap @nicin
//	  ct state new ip6 daddr . meta l4proto . th dport @proxied6 iifname vmap @nicin
//	  ct state new meta nfproto ipv6 meta l4proto . th dport @proxiedany6 iifname vmap @nicin
//	  meta pkttype host ct state new iifname vmap @nicin-host
//	}
//
// So it is where a proxy of ours was called, whatever --host-replies says.
//
// What the host sends to a group that it is in itself comes back to it by the
// NIC, in the connection that it began: that is no call.
func ctInput() chain {
	local := in("local4", daddr(model.IPv4))
	return chain{"ct-input", &hook{nftables.ChainTypeFilter, nftables.ChainHookInput, priorityMark}, []rule{
		newRule("local-isolated-4", ofFamily(model.IPv4), local, notIn("inside", iifname()), direction(ctOriginal), ctNoDNAT(), count(CounterIsolated), drop()),
		newRule("local-called-by-4", ctState(expr.CtStateBitNEW), ofFamily(model.IPv4), local, vmap("nicin", iifname())),
		newRule("proxy-called-by-6", ctState(expr.CtStateBitNEW), ofFamily(model.IPv6), in("proxied6", daddr(model.IPv6), l4proto(), dport()), vmap("nicin", iifname())),
		newRule("proxyany-called-by-6", ctState(expr.CtStateBitNEW), ofFamily(model.IPv6), in("proxiedany6", l4proto(), dport()), vmap("nicin", iifname())),
		newRule("host-called-by", toThisHost(), ctState(expr.CtStateBitNEW), vmap("nicin-host", iifname())),
	}}
}

// markOut sends the host's answers out by the NIC that they were asked on, and
// what is sent from a host entry's address as a container's packets. What of that
// gets no mark was routed to the null device by lock 1, and stays there; what is
// held for good is refused.
//
//	chain mark-out { type route hook output priority mangle; policy accept;
//	  ip saddr @local4 oifname != @inside jump from-local
//	  ip saddr @local4 oifname "eipnull0" ip saddr @blocked4 counter name "refused" reject with icmpx admin-prohibited
//	  ct direction reply ip6 saddr . meta l4proto . th sport @proxied6 ct mark & MASK vmap @ctnic
//	  meta nfproto ipv6 ct direction reply meta l4proto . th sport @proxiedany6 ct mark & MASK vmap @ctnic
//	  ct direction reply ct mark & MASK vmap @ctnic-host
//	  ct state related ct direction original oifname != @inside meta l4proto icmp goto host-error
//	  ct state related ct direction original oifname != @inside meta l4proto ipv6-icmp goto host-error
//	}
func markOut(mask model.Mask) chain {
	local := in("local4", saddr(model.IPv4))
	return chain{"mark-out", &hook{nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMark}, []rule{
		newRule("local-out-4", ofFamily(model.IPv4), local, notIn("inside", oifname()), verdict(expr.VerdictJump, chainFromLocal)),
		newRule("local-refused-4", ofFamily(model.IPv4), local, oifIs(model.NullDevice), in("blocked4", saddr(model.IPv4)), count(CounterRefused), refuse()),
		newRule("proxy-reply-6", ofFamily(model.IPv6), direction(ctReply), in("proxied6", saddr(model.IPv6), l4proto(), sport()), ctMarkVmap(mask, "ctnic")),
		newRule("proxyany-reply-6", ofFamily(model.IPv6), direction(ctReply), in("proxiedany6", l4proto(), sport()), ctMarkVmap(mask, "ctnic")),
		newRule("host-reply", direction(ctReply), ctMarkVmap(mask, "ctnic-host")),
		about(unix.IPPROTO_ICMP, "host-error-4"),
		about(unix.IPPROTO_ICMPV6, "host-error-6"),
	}}
}

// about sends the host's own ICMP errors on their way that answer what came for
// a container, in a connection which that one began.
func about(proto byte, name string) rule {
	return newRule(name, ctState(expr.CtStateBitRELATED), direction(ctOriginal), notIn("inside", oifname()), ofProto(proto), jumpTo(chainHostError))
}

// hostError marks an ICMP error of the host's, to whom a container asked, as that
// container's packets: with a bridge whose MTU is smaller than the NIC's, the host
// says so to who answers. NAT gives such an error the address of the connection's
// NIC, with which it does not leave by another.
//
//	chain host-error {
//	  ct original ip saddr @known4 ip daddr @except4 return
//	  ct original ip6 saddr @known6 ip6 daddr @except6 return
//	  ct original ip saddr . ip daddr @exceptby4 return
//	  ct original ip6 saddr . ip6 daddr @exceptby6 return
//	  ct original ip saddr vmap @pin4
//	  ct original ip6 saddr vmap @pin6
//	}
func hostError() []rule {
	var except, by, pin []rule
	for _, f := range model.Families {
		origin := ctSaddr(f, ctOriginal)
		except = append(except, newRule(named("host-error-except-", f),
			ofFamily(f), in(named("known", f), origin), in(named("except", f), daddr(f)), leave()))
		by = append(by, newRule(named("host-error-except-by-", f),
			ofFamily(f), in(named("exceptby", f), origin, daddr(f)), leave()))
		pin = append(pin, newRule(named("host-error-pin-", f), ofFamily(f), vmap(named("pin", f), origin)))
	}
	return slices.Concat(except, by, pin)
}

// fromLocal does what from-endpoint does, for what the host's own programs send
// from a host entry's address.
//
//	chain from-local {
//	  ct direction reply ct reply ip saddr . ip saddr @self4 ct mark & MASK vmap @ctnic
//	  ct direction reply ct reply ip saddr . ip saddr @self4 goto via-host
//	  … and the last four rules of from-endpoint
//	}
func fromLocal(mask model.Mask) []rule {
	return append([]rule{
		newRule("local-reply-4", ownReply(model.IPv4, ctMarkVmap(mask, "ctnic"))...),
		newRule("local-reply-host-4", ownReply(model.IPv4, jumpTo(chainViaHost))...),
	}, originals("local-")...)
}
