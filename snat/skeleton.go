package snat

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/eipnet/eipnet/internal/model"
)

// tableName is the name of the table; its family is inet.
const tableName = "eipnet"

// Names that more than one place needs.
const (
	chainViaHost      = "via-host"
	chainFromEndpoint = "from-endpoint"
	chainFromWatched  = "from-watched"
	chainFromLocal    = "from-local"
	chainHostError    = "host-error"
	chainBySource     = "by-source"
	chainClamp        = "clamp"
	chainQuoted       = "quoted"
	prefixNIC         = "nic-"
	prefixCT          = "ct-"
)

// Names of the counters, as [Manager.Counters] returns them.
const (
	CounterRefused      = "refused"       // held for good: answered with an ICMP error
	CounterPending      = "pending"       // not decided yet: dropped silently
	CounterIsolated     = "isolated"      // between networks, or into one without a published port
	CounterForged       = "forged"        // a source that is no address of its network, or not one of the connection that it writes about
	CounterGuardInvalid = "guard_invalid" // lock 2: no connection, and a container's own address
	CounterGuardPinned  = "guard_pinned"  // lock 2: pinned, but wrong NIC or wrong source
	CounterGuardHeld    = "guard_held"    // lock 2: held, and yet on its way out
	CounterGuardReply   = "guard_reply"   // lock 2: an answer by a NIC that does not bear its source
)

func counterNames() []string {
	return []string{
		CounterRefused, CounterPending, CounterIsolated, CounterForged,
		CounterGuardInvalid, CounterGuardPinned, CounterGuardHeld, CounterGuardReply,
	}
}

// chain is a chain with its rules; hook is nil for one that is only jumped to.
type chain struct {
	name  string
	hook  *hook
	rules []rule
}

type hook struct {
	kind     nftables.ChainType
	point    *nftables.ChainHook
	priority nftables.ChainPriority
}

// Priorities of our base chains. Docker's own rules (iptables or nftables) sit
// at mangle -150, dstnat -100, filter 0 and srcnat 100. NAT ours comes first,
// because the first NAT rule that matches decides; the guard comes after all
// source NAT, because it judges the packet as it will leave.
const (
	priorityMark  nftables.ChainPriority = -150
	priorityDNAT  nftables.ChainPriority = -110 // dstnat - 10
	priorityAllow nftables.ChainPriority = -10  // filter - 10
	prioritySNAT  nftables.ChainPriority = 90   // srcnat - 10
	priorityGuard nftables.ChainPriority = 101  // srcnat + 1
)

// skeleton returns all chains that do not depend on which NICs are managed.
// It is written once and adopted by later processes; passes change elements.
func skeleton(mask model.Mask) []chain {
	return []chain{
		{name: chainViaHost, rules: []rule{newRule(chainViaHost, setMark(mask, mask.ViaHost()))}},
		{name: chainBySource, rules: bySourceRules()},
		{name: chainFromEndpoint, rules: fromEndpoint(mask)},
		{name: chainFromWatched, rules: fromWatched(mask)},
		{name: chainFromLocal, rules: fromLocal(mask)},
		{name: chainHostError, rules: hostError()},
		{name: chainClamp, rules: clampRules()},
		{name: chainQuoted, rules: quotedRules()},
		markPre(), ctForward(), ctInput(), markOut(mask),
		dnatPre(), dnatOut(), snatPost(), forward(), guardPost(mask),
	}
}

// nicChains returns the two chains of a managed NIC, here of number 1 with the default mask.
//
//	chain nic-1 { meta mark set meta mark & 0x00ffffff | 0x01000000 }
//	chain ct-1  { ct mark set ct mark & 0x00ffffff | 0x01000000 }
func nicChains(mask model.Mask, id model.NICID) []chain {
	nic, ct := nicChain(id), ctChain(id)
	return []chain{
		{name: nic, rules: []rule{newRule(nic, setMark(mask, mask.Of(id)))}},
		{name: ct, rules: []rule{newRule(ct, setCtMark(mask, mask.Of(id)))}},
	}
}

func nicChain(id model.NICID) string { return fmt.Sprintf("%s%d", prefixNIC, id) }
func ctChain(id model.NICID) string  { return fmt.Sprintf("%s%d", prefixCT, id) }

// fromEndpoint decides by which NIC a packet of a locked bridge leaves: an
// answer by the NIC that it was asked on, or as the host has it; everything
// else by its source. What no rule marks is held by lock 1.
//
// A packet counts as a connection's only if its source is the endpoint that the
// connection is about, and that is not held: an ICMP error is given to the
// connection that it quotes, which may be anybody's, and would leave by its NIC
// with its address.
//
//	chain from-endpoint {
//	  ip daddr 127.0.0.0/8 counter name "isolated" drop
//	  ip saddr != @own4 counter name "forged" drop
//	  ip6 saddr @linklocal6 return
//	  ip6 saddr != @own6 counter name "forged" drop
//	  ct direction reply ct reply ip saddr . ip saddr @self4 ct mark & MASK vmap @ctnic
//	  ct direction reply ct reply ip saddr . ip saddr @self4 goto via-host
//	  … and the IPv6 twins of the last two
//	  ct direction reply return
//	  ct state related ct original ip saddr . ip saddr != @self4 return
//	  ct state related ct original ip6 saddr . ip6 saddr != @self6 return
//	  goto by-source
//	}
func fromEndpoint(mask model.Mask) []rule {
	rules := []rule{
		// Where a port is published on the host's loopback, the bridge has
		// route_localnet: nobody else's loopback services are to be reached by it.
		newRule("to-loopback", ofFamily(model.IPv4), toLoopback(model.IPv4), count(CounterIsolated), drop()),
		newRule("forged-4", ofFamily(model.IPv4), notIn("own4", saddr(model.IPv4)), count(CounterForged), drop()),
		newRule("linklocal-6", ofFamily(model.IPv6), in("linklocal6", saddr(model.IPv6)), leave()),
		newRule("forged-6", ofFamily(model.IPv6), notIn("own6", saddr(model.IPv6)), count(CounterForged), drop()),
	}
	for _, f := range model.Families {
		rules = append(rules, newRule(named("reply-", f), ownReply(f, ctMarkVmap(mask, "ctnic"))...))
	}
	for _, f := range model.Families {
		rules = append(rules, newRule(named("reply-host-", f), ownReply(f, jumpTo(chainViaHost))...))
	}
	return append(rules, originals("")...)
}

// fromWatched does so for a bridge that is not locked: what nobody asked about
// stays as it is.
//
//	chain from-watched {
//	  ct direction reply ct reply ip saddr . ip saddr @self4 ct mark & MASK vmap @ctnic
//	  ct direction reply ct reply ip6 saddr . ip6 saddr @self6 ct mark & MASK vmap @ctnic
//	  … and the last four rules of from-endpoint
//	}
func fromWatched(mask model.Mask) []rule {
	var rules []rule
	for _, f := range model.Families {
		rules = append(rules, newRule(named("watched-reply-", f), ownReply(f, ctMarkVmap(mask, "ctnic"))...))
	}
	return append(rules, originals("watched-")...)
}

// ownReply matches answers of an endpoint in its own connection.
func ownReply(f model.Family, then []expr.Any) [][]expr.Any {
	return [][]expr.Any{direction(ctReply), ofFamily(f), in(named("self", f), ctSaddr(f, ctReply), saddr(f)), then}
}

// originals lets an endpoint's own packets be decided by their source.
func originals(prefix string) []rule {
	rules := []rule{newRule(prefix+"reply-others", direction(ctReply), leave())}
	for _, f := range model.Families {
		rules = append(rules, newRule(named(prefix+"related-", f), ctState(expr.CtStateBitRELATED), ofFamily(f),
			notIn(named("self", f), ctSaddr(f, ctOriginal), saddr(f)), leave()))
	}
	return append(rules, newRule(prefix+"original", jumpTo(chainBySource)))
}

// bySourceRules look a source up: excepted destinations follow the host, the rest its pin.
//
//	chain by-source {
//	  ip saddr @known4 ip daddr @except4 goto via-host
//	  ip6 saddr @known6 ip6 daddr @except6 goto via-host
//	  ip saddr . ip daddr @exceptby4 goto via-host
//	  ip6 saddr . ip6 daddr @exceptby6 goto via-host
//	  ip saddr vmap @pin4
//	  ip6 saddr vmap @pin6
//	}
func bySourceRules() []rule {
	var except, by, pin []rule
	for _, f := range model.Families {
		except = append(except, newRule(named("except-", f),
			ofFamily(f), in(named("known", f), saddr(f)), in(named("except", f), daddr(f)), jumpTo(chainViaHost)))
		by = append(by, newRule(named("except-by-", f),
			ofFamily(f), in(named("exceptby", f), saddr(f), daddr(f)), jumpTo(chainViaHost)))
		pin = append(pin, newRule(named("pin-", f), ofFamily(f), vmap(named("pin", f), saddr(f))))
	}
	return slices.Concat(except, by, pin)
}

// markPre sends packets of container bridges to the chain that decides.
//
//	chain mark-pre { type filter hook prerouting priority mangle; policy accept;
//	  iifname @locked goto from-endpoint
//	  iifname @watched goto from-watched
//	}
func markPre() chain {
	return chain{"mark-pre", &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityMark}, []rule{
		newRule("from-locked", in("locked", iifname()), jumpTo(chainFromEndpoint)),
		newRule("from-watched", in("watched", iifname()), jumpTo(chainFromWatched)),
	}}
}

// clampRules tell who is outside to send a container no larger segments than its
// NIC takes, whoever opens the connection: where a NIC's MTU is smaller than its
// neighbours', a segment that is too large for it never arrives, and nobody says
// so. To what containers themselves send, the host says it. A size that is
// smaller already stays.
//
//	chain clamp {
//	  iifname @locked tcp option maxseg size set rt mtu
//	  iifname @watched ip saddr @own4 tcp option maxseg size set rt mtu
//	  iifname @watched ip6 saddr @own6 tcp option maxseg size set rt mtu
//	}
func clampRules() []rule {
	rules := []rule{newRule(chainClamp, in("locked", iifname()), clamp())}
	for _, f := range model.Families {
		rules = append(rules, newRule(named("watched-clamp-", f), in("watched", iifname()), ofFamily(f), in(named("own", f), saddr(f)), clamp()))
	}
	return rules
}

// ctForward remembers in the connection by which NIC a container was called;
// on watched bridges only where something was said about the container.
//
//	chain ct-forward { type filter hook forward priority mangle; policy accept;
//	  tcp flags & (syn|rst) == syn jump clamp
//	  ct state new oifname @locked iifname vmap @nicin
//	  ct state new oifname @watched ip daddr @own4 iifname vmap @nicin
//	  ct state new oifname @watched ip6 daddr @own6 iifname vmap @nicin
//	}
func ctForward() chain {
	rules := []rule{
		newRule("syn", tcpSyn(), verdict(expr.VerdictJump, chainClamp)),
		newRule("called-by", ctState(expr.CtStateBitNEW), in("locked", oifname()), vmap("nicin", iifname())),
	}
	for _, f := range model.Families {
		rules = append(rules, newRule(named("watched-called-by-", f),
			ctState(expr.CtStateBitNEW), in("watched", oifname()), ofFamily(f), in(named("own", f), daddr(f)), vmap("nicin", iifname())))
	}
	return chain{"ct-forward", &hook{nftables.ChainTypeFilter, nftables.ChainHookForward, priorityMark}, rules}
}

// dnatPre translates what comes in for a published port. A port on 127.0.0.1 is
// for the host alone, even where somebody lets other devices route to it.
//
//	chain dnat-pre { type nat hook prerouting priority dstnat - 10; policy accept;
//	  ip daddr 127.0.0.0/8 return
//	  dnat ip to ip daddr . meta l4proto . th dport map @dnat4
//	  dnat ip6 to ip6 daddr . meta l4proto . th dport map @dnat6
//	  meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @dnatany4
//	  meta nfproto ipv6 fib daddr type local dnat ip6 to meta l4proto . th dport map @dnatany6
//	}
func dnatPre() chain {
	loopback := newRule("in-loopback", ofFamily(model.IPv4), toLoopback(model.IPv4), leave())
	return chain{
		"dnat-pre", &hook{nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDNAT},
		append([]rule{loopback}, publish("in-")...),
	}
}

// dnatOut does the same for the host's own processes. The kernel routes nothing
// from ::1 to another device, so that stays with what listens there.
//
//	chain dnat-out { type nat hook output priority dstnat - 10; policy accept;
//	  ip6 daddr ::1 return
//	  … the last four rules of dnat-pre
//	}
func dnatOut() chain {
	loopback := newRule("out-loopback", ofFamily(model.IPv6), toLoopback(model.IPv6), leave())
	rules := append([]rule{loopback}, publish("out-")...)
	return chain{"dnat-out", &hook{nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityDNAT}, rules}
}

// publish returns the rules that dnat-pre and dnat-out share.
func publish(prefix string) []rule {
	var rules []rule
	for _, f := range model.Families {
		rules = append(rules, newRule(named(prefix+"dnat-", f),
			ofFamily(f), lookup(named("dnat", f), daddr(f), l4proto(), dport()), dnatTo(f)))
	}
	for _, f := range model.Families {
		rules = append(rules, newRule(named(prefix+"dnatany-", f),
			ofFamily(f), toLocal(), lookup(named("dnatany", f), l4proto(), dport()), dnatTo(f)))
	}
	return rules
}

// snatPost gives packets their NIC's address; what is not pinned on networks of
// ours is masqueraded, if they say nothing else, on stock networks Docker does that. The first rules are the hairpin:
// a container that calls its own or a sibling's published port must get the
// answer through us, else it comes from an address that nobody called. They
// ask for the source and not for iifname, which is empty here where a bridge
// hands a translated packet on itself (br_netfilter, loaded by Docker up to
// 27), and on kernels before 5.7 always. What a host's process asks of a port on
// 127.0.0.1 gets the bridge's address: nobody answers to a loopback's.
//
//	chain snat-post { type nat hook postrouting priority srcnat - 10; policy accept;
//	  ip saddr 127.0.0.0/8 oifname @ours ct status dnat masquerade
//	  ip saddr @ours4 oifname @ours ct status dnat masquerade
//	  ip6 saddr @ours6 oifname @ours ct status dnat masquerade
//	  snat ip to ip saddr . oifname map @snat4
//	  snat ip6 to ip6 saddr . oifname map @snat6
//	  ip saddr @masq4 oifname != @inside masquerade
//	  ip6 saddr @masq6 oifname != @inside masquerade
//	}
func snatPost() chain {
	loopback := newRule("from-loopback", ofFamily(model.IPv4), fromLoopback(), in("ours", oifname()), ctDNAT(), masquerade())
	var hairpin, snat, masq []rule
	for _, f := range model.Families {
		ours := in(named("ours", f), saddr(f))
		hairpin = append(hairpin, newRule(named("hairpin-", f),
			ofFamily(f), ours, in("ours", oifname()), ctDNAT(), masquerade()))
		snat = append(snat, newRule(named("snat-", f),
			ofFamily(f), lookup(named("snat", f), saddr(f), oifname()), snatTo(f)))
		masq = append(masq, newRule(named("masquerade-", f),
			ofFamily(f), in(named("masq", f), saddr(f)), notIn("inside", oifname()), masquerade()))
	}
	return chain{
		"snat-post", &hook{nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySNAT},
		slices.Concat([]rule{loopback}, hairpin, snat, masq),
	}
}

// forward drops what lock 1 caught, and keeps networks apart. What is not
// decided yet is dropped silently, so that the sender tries again; what is held
// for good is refused. Nothing but its siblings is reached from an internal
// network, published ports of other networks neither: those are on every local
// address, and so on that of its own bridge. Of two networks of Docker's one of
// which is internal Docker's own rules take care.
//
//	chain forward { type filter hook forward priority filter - 10; policy accept;
//	  ip daddr @local4 counter name "isolated" drop
//	  oifname "eipnull0" ip saddr @blocked4 counter name "refused" reject with icmpx admin-prohibited
//	  oifname "eipnull0" ip6 saddr @blocked6 counter name "refused" reject with icmpx admin-prohibited
//	  oifname "eipnull0" counter name "pending" drop
//	  iifname @watched oifname != @inside ct direction original ip saddr @blocked4 counter name "refused" reject with icmpx admin-prohibited
//	  iifname @watched oifname != @inside ct direction original ip6 saddr @blocked6 counter name "refused" reject with icmpx admin-prohibited
//	  iifname @watched oifname != @inside ct direction original ip saddr @own4 ip saddr != @known4 counter name "pending" drop
//	  iifname @watched oifname != @inside ct direction original ip6 saddr @own6 ip6 saddr != @known6 counter name "pending" drop
//	  ct state related oifname != @inside jump quoted
//	  ct state established,related accept
//	  meta nfproto @noforward iifname != @inside oifname != @inside counter name "isolated" drop
//	  iifname . oifname @same accept
//	  iifname @internal oifname @ours counter name "isolated" drop
//	  iifname @internal iifname @ours counter name "isolated" drop
//	  iifname @ours oifname @internal counter name "isolated" drop
//	  oifname @ours ct status dnat accept
//	  oifname @ours counter name "isolated" drop
//	  iifname @ours oifname @inside ct status & dnat == 0 counter name "isolated" drop
//	}
func forward() chain {
	null := oifIs(model.NullDevice)
	// The address is gone for a moment: what was translated to it goes nowhere else.
	rules := []rule{newRule("local-forwarded-4", ofFamily(model.IPv4), in("local4", daddr(model.IPv4)), count(CounterIsolated), drop())}
	for _, f := range model.Families {
		rules = append(rules, newRule(named("refused-", f),
			null, ofFamily(f), in(named("blocked", f), saddr(f)), count(CounterRefused), refuse()))
	}
	rules = append(rules, newRule("pending", null, count(CounterPending), drop()))
	outward := func(name string, more ...[]expr.Any) {
		rules = append(rules, newRule(name, append([][]expr.Any{in("watched", iifname()), notIn("inside", oifname()), direction(ctOriginal)}, more...)...))
	}
	for _, f := range model.Families {
		outward(named("watched-refused-", f), ofFamily(f), in(named("blocked", f), saddr(f)), count(CounterRefused), refuse())
	}
	for _, f := range model.Families {
		outward(named("watched-pending-", f),
			ofFamily(f), in(named("own", f), saddr(f)), notIn(named("known", f), saddr(f)), count(CounterPending), drop())
	}
	rules = append(rules,
		newRule(chainQuoted, ctState(expr.CtStateBitRELATED), notIn("inside", oifname()), verdict(expr.VerdictJump, chainQuoted)),
		newRule("established", ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()))
	rules = append(rules,
		newRule("noforward", in("noforward", meta(expr.MetaKeyNFPROTO, 1)), notIn("inside", iifname()), notIn("inside", oifname()), count(CounterIsolated), drop()),
		newRule("same", in("same", iifname(), oifname()), accept()),
		newRule("internal-to-ours", in("internal", iifname()), in("ours", oifname()), count(CounterIsolated), drop()),
		newRule("internal-of-ours", in("internal", iifname()), in("ours", iifname()), count(CounterIsolated), drop()),
		newRule("ours-to-internal", in("ours", iifname()), in("internal", oifname()), count(CounterIsolated), drop()),
		newRule("published", in("ours", oifname()), ctDNAT(), accept()),
		newRule("isolated-in", in("ours", oifname()), count(CounterIsolated), drop()),
		newRule("isolated-out", in("ours", iifname()), in("inside", oifname()), ctNoDNAT(), count(CounterIsolated), drop()),
	)
	return chain{"forward", &hook{nftables.ChainTypeFilter, nftables.ChainHookForward, priorityAllow}, rules}
}

// named appends the family's digit: "pin4", "guard-held-6".
func named(prefix string, f model.Family) string {
	var b strings.Builder
	b.WriteString(prefix)
	b.WriteByte('0' + byte(f))
	return b.String()
}
