package route

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// fibRuleInvert is FIB_RULE_INVERT of linux/fib_rules.h: "not from …".
const fibRuleInvert = 0x2

// noSuppress is how the kernel lists a suppressor that is not set.
const noSuppress = 0xffffffff

// kernelRule is a rule as listed. exact is false where it says something that
// a plan.Rule cannot; body is the message that deletes it, with all its fields.
type kernelRule struct {
	rule  plan.Rule
	exact bool
	body  []nl.NetlinkRequestData
}

// rawData is a piece of a netlink message that came from the kernel.
type rawData []byte

func (d rawData) Len() int          { return len(d) }
func (d rawData) Serialize() []byte { return d }

// canonicalRules brings rules into the form that the kernel lists, sorted in
// the order of adding, without duplicates.
func canonicalRules(rules []plan.Rule) []plan.Rule {
	out := make([]plan.Rule, 0, len(rules))
	for _, r := range rules {
		out = append(out, canonicalRule(r))
	}
	slices.SortFunc(out, compareRules)
	seen := make(map[plan.Rule]bool, len(out))
	return slices.DeleteFunc(out, func(r plan.Rule) bool {
		dup := seen[r]
		seen[r] = true
		return dup
	})
}

func canonicalRule(r plan.Rule) plan.Rule {
	r.From = r.From.Masked()
	if r.From.Bits() <= 0 {
		r.From = netip.Prefix{}
	}
	if r.Mark != 0 && r.Mask == 0 {
		r.Mask = 0xffffffff
	}
	if r.Action != plan.Lookup {
		r.Table, r.SuppressSpecific = 0, false
	}
	if r.Action != plan.Goto {
		r.Target = 0
	}
	return r
}

// encodeRule renders a rule as the body of RTM_NEWRULE. The library's own
// RuleAdd leaves suppressors out for tables above 255.
func encodeRule(r plan.Rule) []nl.NetlinkRequestData {
	hdr := &nl.RtMsg{} // struct fib_rule_hdr has the same layout
	hdr.Family = family(r.Family)
	hdr.Type = nl.FR_ACT_TO_TBL
	body := []nl.NetlinkRequestData{hdr}
	put := func(attr int, value []byte) { body = append(body, nl.NewRtAttr(attr, value)) }
	put32 := func(attr int, value uint32) { put(attr, nl.Uint32Attr(value)) }

	put32(nl.FRA_PRIORITY, uint32(r.Priority))
	put(nl.FRA_PROTOCOL, nl.Uint8Attr(model.Protocol))
	if r.From.IsValid() {
		hdr.Src_len = uint8(r.From.Bits())
		put(nl.FRA_SRC, r.From.Addr().AsSlice())
	}
	if r.Iif != "" {
		put(nl.FRA_IIFNAME, nl.ZeroTerminated(r.Iif))
	}
	if r.Mask != 0 {
		put32(nl.FRA_FWMARK, uint32(r.Mark))
		put32(nl.FRA_FWMASK, uint32(r.Mask))
	}
	switch r.Action {
	case plan.Goto:
		hdr.Type = nl.FR_ACT_GOTO
		put32(nl.FRA_GOTO, uint32(r.Target))
	case plan.Nop:
		hdr.Type = nl.FR_ACT_NOP
	case plan.Lookup:
		put32(nl.FRA_TABLE, uint32(r.Table))
	}
	if r.SuppressSpecific {
		put32(nl.FRA_SUPPRESS_PREFIXLEN, 0)
		put32(nl.FRA_SUPPRESS_IFGROUP, model.NICGroup)
	}
	return body
}

// decodeRule is the inverse of encodeRule; ours is false for rules of other
// protocols, families and priorities.
func decodeRule(m []byte) (k kernelRule, ours bool, err error) {
	hdr := nl.DeserializeRtMsg(m)
	if hdr.Family != unix.AF_INET && hdr.Family != unix.AF_INET6 {
		return k, false, nil
	}
	attrs, err := nl.ParseRouteAttr(m[hdr.Len():])
	if err != nil {
		return k, false, fmt.Errorf("parsing a rule: %w", err)
	}
	k = kernelRule{exact: hdr.Tos == 0 && hdr.Flags&fibRuleInvert == 0, body: []nl.NetlinkRequestData{rawData(m)}}
	r := &k.rule
	r.Family = model.IPv4
	if hdr.Family == unix.AF_INET6 {
		r.Family = model.IPv6
	}
	var protocol uint8
	prefixlen, ifgroup := uint32(noSuppress), uint32(noSuppress)
	for _, a := range attrs {
		v := a.Value
		switch a.Attr.Type {
		case nl.FRA_PROTOCOL:
			protocol = v[0]
		case nl.FRA_PRIORITY:
			r.Priority = int(binary.NativeEndian.Uint32(v))
		case nl.FRA_SRC:
			addr, _ := netip.AddrFromSlice(v)
			r.From = netip.PrefixFrom(addr, int(hdr.Src_len))
		case nl.FRA_IIFNAME:
			r.Iif = unix.ByteSliceToString(v)
		case nl.FRA_FWMARK:
			r.Mark = model.Mark(binary.NativeEndian.Uint32(v))
		case nl.FRA_FWMASK:
			r.Mask = model.Mask(binary.NativeEndian.Uint32(v))
		case nl.FRA_TABLE:
			r.Table = model.Table(binary.NativeEndian.Uint32(v))
		case nl.FRA_GOTO:
			r.Target = int(binary.NativeEndian.Uint32(v))
		case nl.FRA_SUPPRESS_PREFIXLEN:
			prefixlen = binary.NativeEndian.Uint32(v)
		case nl.FRA_SUPPRESS_IFGROUP:
			ifgroup = binary.NativeEndian.Uint32(v)
		default: // destination, outgoing device, ports, users, …
			k.exact = false
		}
	}
	switch hdr.Type {
	case nl.FR_ACT_TO_TBL:
		r.Action = plan.Lookup
	case nl.FR_ACT_GOTO:
		r.Action = plan.Goto
	case nl.FR_ACT_NOP:
		r.Action = plan.Nop
	default: // blackhole, prohibit, unreachable
		k.exact = false
	}
	switch {
	case prefixlen == 0 && ifgroup == model.NICGroup:
		r.SuppressSpecific = true
	case prefixlen != noSuppress || ifgroup != noSuppress:
		k.exact = false
	}
	ours = protocol == model.Protocol && isOurPriority(r.Priority)
	return k, ours, nil
}

func isOurPriority(p int) bool {
	return p >= model.PriorityFirst && p <= model.PriorityLast || p == model.PriorityHostRoutes || p == model.PriorityHostSource
}

// listRules returns the rules that are ours.
func (m *Manager) listRules() ([]kernelRule, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
		req.Sockets = m.sockets
		req.AddData(&nl.RtMsg{})
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
	})
	if err != nil {
		return nil, err
	}
	var out []kernelRule
	for _, msg := range msgs {
		k, ours, err := decodeRule(msg)
		if err != nil {
			return nil, err
		}
		if ours {
			out = append(out, k)
		}
	}
	return out, nil
}

func (m *Manager) writeRule(op, flags int, body ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(op, flags|unix.NLM_F_ACK)
	req.Sockets = m.sockets
	for _, d := range body {
		req.AddData(d)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// describeRule renders a rule as `ip rule` does.
func describeRule(r plan.Rule) string {
	var b strings.Builder
	from := "all"
	if r.From.IsValid() {
		from = r.From.String()
		if r.From.IsSingleIP() {
			from = r.From.Addr().String()
		}
	}
	fmt.Fprintf(&b, "%d: from %s", r.Priority, from)
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", uint32(r.Mark), uint32(r.Mask))
	}
	if r.Iif != "" {
		fmt.Fprintf(&b, " iif %s", r.Iif)
	}
	switch r.Action {
	case plan.Goto:
		fmt.Fprintf(&b, " goto %d", r.Target)
	case plan.Nop:
		b.WriteString(" nop")
	case plan.Lookup:
		fmt.Fprintf(&b, " lookup %d", r.Table)
	}
	if r.SuppressSpecific {
		fmt.Fprintf(&b, " suppress_prefixlength 0 suppress_ifgroup %d", model.NICGroup)
	}
	if r.Family == model.IPv6 {
		return "-6 " + b.String()
	}
	return b.String()
}

func family(f model.Family) uint8 {
	if f == model.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
