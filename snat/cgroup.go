package snat

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// Containers on the host's network have no address of their own. They are told
// from the host's programs by the cgroup of the socket that a packet comes from,
// which nftables knows on its way out and no later. So the connection remembers
// the NIC, and what comes after goes by that. All of it is there only where the
// kernel and the host's hierarchy of cgroups have what it needs.

const (
	chainCgroupOut   = "cgroup-out"
	chainCgroupPost  = "cgroup-post"
	chainCgroupGuard = "cgroup-guard"
	setCgroupHeld    = "cgroup-held"
	prefixGroup      = "group-"
	prefixLevel      = "cgroup-pin-"

	statusConfirmed = 1 << 3 // IPS_CONFIRMED: a packet of it has left or arrived before

	maxLevel = 255 // the kernel's
)

// cgroupSpecs lists the sets and maps that are there for such containers only.
//
//	map cgroup-pin  { type cgroupsv2 : verdict }     cgroup → group-N
//	set cgroup-held { type cgroupsv2 }               those that are held
//	set cgroup-except4 { type cgroupsv2 . ipv4_addr; flags interval }
//	map cgroup-snat4  { type mark . ifname : ipv4_addr }     a NIC's mark, the NIC → its first address
//	set cgroup-legit4 { type mark . ifname . ipv4_addr }     the same as a set, for the guard
//	… and their IPv6 twins
func cgroupSpecs() []setSpec {
	type types = []nftables.SetDatatype
	group, mark, name := nftables.TypeCGroupV2, nftables.TypeMark, nftables.TypeIFName
	specs := []setSpec{
		{name: "cgroup-pin", cgroups: true, key: types{group}, value: types{nftables.TypeVerdict}},
		{name: setCgroupHeld, cgroups: true, key: types{group}},
	}
	for _, f := range model.Families {
		addr := nftables.TypeIPAddr
		if f == model.IPv6 {
			addr = nftables.TypeIP6Addr
		}
		specs = append(specs,
			setSpec{name: named("cgroup-except", f), cgroups: true, key: types{group, addr}, interval: true},
			setSpec{name: named("cgroup-snat", f), cgroups: true, key: types{mark, name}, value: types{addr}},
			setSpec{name: named("cgroup-legit", f), cgroups: true, key: types{mark, name, addr}})
	}
	return specs
}

// cgroupChains returns the base chains, for cgroups on these levels.
func cgroupChains(mask model.Mask, levels []int) []chain {
	return []chain{cgroupOut(mask, levels), cgroupPost(mask), cgroupGuard(mask)}
}

// cgroupOut marks what such containers send off the host, here with cgroups on
// level 2. What is held sends nothing, answers included. Answers of others leave as
// those of the host's programs. A connection that bears a NIC goes on by it when
// its socket is gone, as the kernel still says its last words.
//
//	chain cgroup-out { type route hook output priority mangle; policy accept;
//	  oifname "lo" return
//	  oifname @inside return
//	  socket cgroupv2 level 2 @cgroup-held counter name "refused" reject with icmpx admin-prohibited
//	  ct direction reply return
//	  ct mark & MASK == 0 socket cgroupv2 level 2 . ip daddr @cgroup-except4 return
//	  ct mark & MASK == 0 socket cgroupv2 level 2 . ip6 daddr @cgroup-except6 return
//	  socket cgroupv2 level 2 vmap @cgroup-pin
//	  ct mark & MASK vmap @ctnic
//	}
func cgroupOut(mask model.Mask, levels []int) chain {
	rules := []rule{
		newRule("cgroup-lo", oifIs("lo"), leave()),
		newRule("cgroup-inside", in("inside", oifname()), leave()),
	}
	for _, l := range levels {
		rules = append(rules, newRule(fmt.Sprintf("cgroup-held-%d", l), in(setCgroupHeld, cgroup(l)), count(CounterRefused), refuse()))
	}
	rules = append(rules, newRule("cgroup-reply", direction(ctReply), leave()))
	for _, l := range levels {
		for _, f := range model.Families {
			rules = append(rules, newRule(named(fmt.Sprintf("cgroup-except-%d-", l), f),
				ctIs(mask, 0), ofFamily(f), in(named("cgroup-except", f), cgroup(l), daddr(f)), leave()))
		}
	}
	for _, l := range levels {
		rules = append(rules, newRule(prefixLevel+strconv.Itoa(l), vmap("cgroup-pin", cgroup(l))))
	}
	rules = append(rules, newRule("cgroup-begun", ctMarkVmap(mask, "ctnic")))
	return chain{chainCgroupOut, &hook{nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMark}, rules}
}

// groupChain pins what a container sends to a NIC, here number 2. What belongs to
// no connection could not be given the NIC's address. A connection that began
// otherwise, before there was a pin, with another one or to a destination that was
// excepted then, has an address that it keeps: it ends.
//
//	chain group-2 {
//	  ct state invalid,untracked counter name "guard_invalid" drop
//	  ct mark & MASK == 0 ip daddr @except4 return
//	  ct mark & MASK == 0 ip6 daddr @except6 return
//	  ct mark & MASK == 0x02000000 goto nic-2
//	  ct status confirmed meta l4proto tcp counter name "refused" reject with tcp reset
//	  ct status confirmed counter name "refused" reject with icmpx admin-prohibited
//	  jump ct-2
//	  goto nic-2
//	}
func groupChain(mask model.Mask, id model.NICID) chain {
	name := prefixGroup + strconv.Itoa(int(id))
	rules := []rule{newRule(name+"-invalid", ctState(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), count(CounterGuardInvalid), drop())}
	for _, f := range model.Families {
		rules = append(rules, newRule(named(name+"-except-", f), ctIs(mask, 0), ofFamily(f), in(named("except", f), daddr(f)), leave()))
	}
	return chain{name: name, rules: append(rules,
		newRule(name+"-begun", ctIs(mask, mask.Of(id)), jumpTo(nicChain(id))),
		newRule(name+"-ends", ctBits(expr.CtKeySTATUS, statusConfirmed, expr.CmpOpNeq), equal(l4proto(), []byte{unix.IPPROTO_TCP}),
			count(CounterRefused), reset()),
		newRule(name+"-otherwise", ctBits(expr.CtKeySTATUS, statusConfirmed, expr.CmpOpNeq), count(CounterRefused), refuse()),
		newRule(name+"-remember", verdict(expr.VerdictJump, ctChain(id))),
		newRule(name+"-mark", jumpTo(nicChain(id))),
	)}
}

// cgroupPost gives what the host itself sends in such connections the NIC's
// address, whichever the socket has.
//
//	chain cgroup-post { type nat hook postrouting priority srcnat - 10; policy accept;
//	  iifname "" snat ip to ct mark & MASK . oifname map @cgroup-snat4
//	  iifname "" snat ip6 to ct mark & MASK . oifname map @cgroup-snat6
//	}
func cgroupPost(mask model.Mask) chain {
	var rules []rule
	for _, f := range model.Families {
		key := append(maskedCtMark(mask), oifname().load(register(4)))
		rules = append(rules, newRule(named("cgroup-snat-", f), fromHost(expr.CmpOpEq), ofFamily(f), key,
			[]expr.Any{&expr.Lookup{SourceRegister: 1, SetName: named("cgroup-snat", f), IsDestRegSet: true, DestRegister: 1}}, snatTo(f)))
	}
	return chain{chainCgroupPost, &hook{nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySNAT}, rules}
}

// cgroupGuard drops what the host itself is about to send in a connection that
// bears a NIC, by anything but that NIC with its address. No other connection of
// the host's own bears one in its original direction.
//
//	chain cgroup-guard { type filter hook postrouting priority srcnat + 1; policy accept;
//	  oifname "lo" accept
//	  oifname @inside accept
//	  iifname != "" accept
//	  ct direction original ct mark & MASK != 0 ct mark & MASK . oifname . ip saddr != @cgroup-legit4 counter name "guard_pinned" drop
//	  ct direction original ct mark & MASK != 0 ct mark & MASK . oifname . ip6 saddr != @cgroup-legit6 counter name "guard_pinned" drop
//	}
func cgroupGuard(mask model.Mask) chain {
	rules := []rule{
		newRule("cgroup-guard-lo", oifIs("lo"), accept()),
		newRule("cgroup-guard-inside", in("inside", oifname()), accept()),
		newRule("cgroup-guard-forwarded", fromHost(expr.CmpOpNeq), accept()),
	}
	for _, f := range model.Families {
		key := append(maskedCtMark(mask), oifname().load(register(4)), saddr(f).load(register(20)))
		rules = append(rules, newRule(named("cgroup-guard-", f), direction(ctOriginal), ctMarked(mask), ofFamily(f), key,
			[]expr.Any{&expr.Lookup{SourceRegister: 1, SetName: named("cgroup-legit", f), Invert: true}}, count(CounterGuardPinned), drop()))
	}
	return chain{chainCgroupGuard, &hook{nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityGuard}, rules}
}

// cgroup is `socket cgroupv2 level N`.
func cgroup(level int) field {
	return field{8, func(reg uint32) expr.Any {
		return &expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(level), Register: reg} // #nosec G115 -- at most maxLevel
	}}
}

// fromHost is `iifname ""` or `iifname != ""`: after routing, the host's own packets have none.
func fromHost(op expr.CmpOp) []expr.Any {
	return append(load(iifname()), &expr.Cmp{Op: op, Register: 1, Data: ifname("")})
}

// ctIs is `ct mark & MASK == MARK`.
func ctIs(mask model.Mask, mark model.Mark) []expr.Any {
	return append(maskedCtMark(mask), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: n32(uint32(mark))})
}

func maskedCtMark(mask model.Mask) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, and(uint32(mask), 0)}
}

// groups renders the elements. Level 0 is the root, which everybody is in.
func (r *renderer) groups(fw plan.Firewall, managed map[model.NICID]string) {
	for _, n := range fw.NICs {
		for _, a := range []struct {
			f    model.Family
			addr []byte
		}{{model.IPv4, n.Addr4.AsSlice()}, {model.IPv6, n.Addr6.AsSlice()}} {
			if len(a.addr) > 0 {
				mark := n32(uint32(fw.Mask.Of(n.ID)))
				r.put(named("cgroup-snat", a.f), string(a.addr), mark, r.link(n.Name))
				r.put(named("cgroup-legit", a.f), "", mark, r.link(n.Name), a.addr)
			}
		}
	}
	for _, g := range fw.Groups {
		if g.Cgroup.ID == 0 || g.Cgroup.Level < 1 || g.Cgroup.Level > maxLevel {
			r.fail("rendering cgroup %d of level %d: want one below the root", g.Cgroup.ID, g.Cgroup.Level)
			continue
		}
		id := binaryutil.NativeEndian.PutUint64(g.Cgroup.ID)
		if g.Verdict != plan.Pinned {
			r.put(setCgroupHeld, "", id)
			continue
		}
		if managed[g.NIC] == "" {
			r.fail("rendering cgroup %d: pinned to NIC %d: want a managed one", g.Cgroup.ID, g.NIC)
			continue
		}
		r.put("cgroup-pin", prefixGroup+strconv.Itoa(int(g.NIC)), id)
		for _, f := range model.Families {
			for _, i := range mergePrefixes(g.Except, f) {
				r.put(named("cgroup-except", f), "", id, i.first.AsSlice(), id, i.last.AsSlice())
			}
		}
	}
}

// levels are those that the firewall's cgroups are on.
func levels(fw plan.Firewall) []int {
	var out []int
	for _, g := range fw.Groups {
		out = append(out, g.Cgroup.Level)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// relevel has the target look on the levels that the kernel's chain looks on, too.
func (t *target) relevel(have content, fw plan.Firewall) error {
	all := levels(fw)
	for _, comment := range have.chains[chainCgroupOut] {
		name, _, _ := strings.Cut(comment, ":")
		number, ok := strings.CutPrefix(name, prefixLevel)
		if l, err := strconv.Atoi(number); ok && err == nil && l >= 1 && l <= maxLevel {
			all = append(all, l)
		}
	}
	slices.Sort(all)
	t.chains = slices.DeleteFunc(t.chains, func(ch chain) bool { return ch.name == chainCgroupOut })
	delete(t.comments, chainCgroupOut)
	return t.add(cgroupOut(fw.Mask, slices.Compact(all)))
}

// probeTable is a table that is never there: it is made and deleted in one transaction.
const probeTable = "eipnet-probe"

// ProbeCgroups asks the kernel whether nftables can match the cgroup of a
// packet's socket; nil: it can. Whatever the answer, nothing of it stays. netNS is
// a descriptor of the network namespace where it is asked, 0 the caller's own.
func ProbeCgroups(netNS int) error {
	conn, err := nftables.New(nftables.WithNetNSFd(netNS))
	if err != nil {
		return fmt.Errorf("opening a netlink socket for nftables: %w", err)
	}
	table := &nftables.Table{Name: probeTable, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	c := conn.AddChain(&nftables.Chain{
		Table: table, Name: chainCgroupOut, Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: new(priorityMark),
	})
	specs := cgroupSpecs()
	held := slices.IndexFunc(specs, func(s setSpec) bool { return s.name == setCgroupHeld })
	set := specs[held].set(table)
	if err := conn.AddSet(set, nil); err != nil {
		return fmt.Errorf("probing for cgroups: %w", err)
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: append(in(set.Name, cgroup(1)), drop()...)})
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables of this kernel cannot match the cgroup of a socket (socket cgroupv2): %w", err)
	}
	return nil
}
