package snat

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/eipnet/eipnet/internal/model"
)

// guardPost is lock 2: it judges every packet that leaves the host by the
// connection's own addresses, never by the packet's mark, and drops what is
// neither pinned to just this NIC and source nor known as unpinned.
//
// Answers leave by a managed NIC only with one of its own addresses. By any
// other device (a VPN, a bridge that we do not know, a NIC that nobody asked
// for) they may go with whatever address was called, as callers by such a
// device need it; but a pinned container's not by the primary with another
// NIC's, and none where the connection came by a managed NIC. That alone is asked of the connection's
// mark, which nobody but us sets in our bits: were it lost, an answer could
// leave by a device that is not ours.
//
// What follows the host's routing may have begun with a NIC's address, when it
// was pinned or its destination not excepted: by another NIC it does not go on.
//
//	chain guard-post { type filter hook postrouting priority srcnat + 1; policy accept;
//	  oifname @inside accept
//	  ct state invalid,untracked ip saddr @own4 counter name "guard_invalid" drop
//	  ip saddr @masq4 counter name "guard_invalid" drop
//	  ip saddr @pinned4 counter name "guard_invalid" drop
//	  ct direction original ct original ip saddr @known4 oifname @nics ip saddr @uplink4 oifname . ip saddr != @nicaddr4 counter name "guard_pinned" drop
//	  ct direction original ct original ip saddr @known4 ip daddr @except4 accept
//	  ct direction original ct original ip saddr . ip daddr @exceptby4 accept
//	  ct direction original ct original ip saddr @pinned4 ct original ip saddr . oifname . ip saddr != @legit4 counter name "guard_pinned" drop
//	  ct direction original ct original ip saddr @own4 ct original ip saddr != @known4 counter name "guard_held" drop
//	  ct direction reply ct reply ip saddr @own4 ct reply ip saddr != @known4 counter name "guard_held" drop
//	  ct direction reply ct reply ip saddr @pinned4 oifname @nics ip saddr @uplink4 oifname . ip saddr != @nicaddr4 counter name "guard_reply" drop
//	  ct direction reply ct reply ip saddr @own4 oifname @managed oifname . ip saddr != @nicaddr4 counter name "guard_reply" drop
//	  ct direction reply ct reply ip saddr @own4 ct mark & MASK != 0 oifname . ip saddr != @nicaddr4 counter name "guard_reply" drop
//	  … and the IPv6 twins of the last twelve
//	}
func guardPost(mask model.Mask) chain {
	rules := []rule{newRule("guard-inside", in("inside", oifname()), accept())}
	for _, f := range model.Families {
		rules = append(rules, guard(mask, f)...)
	}
	return chain{"guard-post", &hook{nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityGuard}, rules}
}

func guard(mask model.Mask, f model.Family) []rule {
	origin, answer := ctSaddr(f, ctOriginal), ctSaddr(f, ctReply)
	own, known := named("own", f), named("known", f)
	// By one NIC with the address of another.
	elsewhere := [][]expr.Any{in("nics", oifname()), in(named("uplink", f), saddr(f)), notIn(named("nicaddr", f), oifname(), saddr(f))}
	return []rule{
		newRule(named("guard-invalid-", f),
			ctState(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), ofFamily(f), in(own, saddr(f)),
			count(CounterGuardInvalid), drop()),
		newRule(named("guard-bare-", f),
			ofFamily(f), in(named("masq", f), saddr(f)), count(CounterGuardInvalid), drop()),
		newRule(named("guard-bare-pinned-", f),
			ofFamily(f), in(named("pinned", f), saddr(f)), count(CounterGuardInvalid), drop()),
		newRule(named("guard-source-", f), append([][]expr.Any{direction(ctOriginal), ofFamily(f), in(known, origin)},
			append(elsewhere, count(CounterGuardPinned), drop())...)...),
		newRule(named("guard-except-", f),
			direction(ctOriginal), ofFamily(f), in(known, origin), in(named("except", f), daddr(f)),
			accept()),
		newRule(named("guard-except-by-", f),
			direction(ctOriginal), ofFamily(f), in(named("exceptby", f), origin, daddr(f)),
			accept()),
		newRule(named("guard-pinned-", f),
			direction(ctOriginal), ofFamily(f), in(named("pinned", f), origin),
			notIn(named("legit", f), origin, oifname(), saddr(f)),
			count(CounterGuardPinned), drop()),
		newRule(named("guard-held-", f),
			direction(ctOriginal), ofFamily(f), in(own, origin), notIn(known, origin),
			count(CounterGuardHeld), drop()),
		newRule(named("guard-held-reply-", f),
			direction(ctReply), ofFamily(f), in(own, answer), notIn(known, answer),
			count(CounterGuardHeld), drop()),
		newRule(named("guard-source-reply-", f), append([][]expr.Any{direction(ctReply), ofFamily(f), in(named("pinned", f), answer)},
			append(elsewhere, count(CounterGuardReply), drop())...)...),
		newRule(named("guard-reply-", f),
			direction(ctReply), ofFamily(f), in(own, answer), in("managed", oifname()),
			notIn(named("nicaddr", f), oifname(), saddr(f)),
			count(CounterGuardReply), drop()),
		newRule(named("guard-reply-other-", f),
			direction(ctReply), ofFamily(f), in(own, answer), ctMarked(mask),
			notIn(named("nicaddr", f), oifname(), saddr(f)),
			count(CounterGuardReply), drop()),
	}
}

// quotedRules drop what containers send off the host in the name of connections
// that are not their own: ICMP errors, which conntrack gives to the connection
// that they quote. Where its addresses are translated, NAT gives the error that
// connection's source, too, so that the guard behind it cannot tell whose it
// was. On watched bridges, and where the ip rules are lost, nothing else stops
// it: without a mark it is routed as the host has it. A held source is in no
// pair, and is dropped whatever it quotes.
//
//	chain quoted {
//	  ct direction original ip saddr @own4 ct original ip saddr . ip saddr != @self4 counter name "forged" drop
//	  ct direction reply ip saddr @own4 ct reply ip saddr . ip saddr != @self4 counter name "forged" drop
//	  … and their IPv6 twins
//	}
func quotedRules() []rule {
	var rules []rule
	for _, f := range model.Families {
		for _, d := range []struct {
			prefix string
			dir    byte
		}{{"quoted-", ctOriginal}, {"quoted-reply-", ctReply}} {
			rules = append(rules, newRule(named(d.prefix, f), direction(d.dir), ofFamily(f), in(named("own", f), saddr(f)),
				notIn(named("self", f), ctSaddr(f, uint32(d.dir)), saddr(f)), count(CounterForged), drop()))
		}
	}
	return rules
}
