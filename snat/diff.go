package snat

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// target is what the table should hold.
type target struct {
	chains   []chain
	comments map[string][]string // chain → comments of its rules
	sets     map[string]elements
}

// render returns the target for a firewall.
func render(fw plan.Firewall) (target, error) {
	if err := fw.Mask.Validate(); err != nil {
		return target{}, fmt.Errorf("rendering the firewall: %w", err)
	}
	sets, err := renderElements(fw)
	if err != nil {
		return target{}, err
	}
	t := target{sets: sets, comments: make(map[string][]string)}
	if err := t.add(skeleton(fw.Mask)...); err != nil {
		return target{}, err
	}
	for _, n := range fw.NICs {
		if err := t.addNIC(fw, n.ID); err != nil {
			return target{}, err
		}
	}
	if fw.Cgroups {
		if err := t.add(cgroupChains(fw.Mask, levels(fw))...); err != nil {
			return target{}, err
		}
	}
	return t, nil
}

func (t *target) addNIC(fw plan.Firewall, id model.NICID) error {
	chains := nicChains(fw.Mask, id)
	if fw.Cgroups {
		chains = append(chains, groupChain(fw.Mask, id))
	}
	return t.add(chains...)
}

func (t *target) add(chains ...chain) error {
	for _, ch := range chains {
		if _, ok := t.comments[ch.name]; ok {
			continue
		}
		comments := make([]string, len(ch.rules))
		for i, r := range ch.rules {
			var err error
			if comments[i], err = r.comment(); err != nil {
				return err
			}
		}
		t.chains = append(t.chains, ch)
		t.comments[ch.name] = comments
	}
	return nil
}

// keep adds what the kernel has and the target lacks, so that nothing is taken
// away but what the firewall decides anew: an address in its sources gets
// nothing of what the kernel holds about it.
func (t *target) keep(have content, fw plan.Firewall) error {
	decided := make(map[string]bool, len(fw.Sources))
	for _, s := range fw.Sources {
		decided[string(s.Addr.Unmap().AsSlice())] = true
	}
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		number, ok := strings.CutPrefix(name, prefixNIC)
		if id, err := strconv.ParseUint(number, 10, 8); ok && err == nil && id > 0 && id <= uint64(model.MaxNICID) {
			if err := t.addNIC(fw, model.NICID(id)); err != nil {
				return err
			}
		}
	}
	if fw.Cgroups {
		if err := t.relevel(have, fw); err != nil {
			return err
		}
	}
	for _, s := range setSpecs() {
		mine, wanted := t.sets[s.name]
		switch {
		case !wanted:
			continue
		case s.ranges():
			s.adopt(mine, have.sets[s.name], decided)
			continue
		case s.interval:
			t.sets[s.name] = s.union(mine, have.sets[s.name])
			continue
		}
		for key, value := range have.sets[s.name] {
			if _, ok := mine[key]; ok || decided[s.about(key, value)] {
				continue
			}
			if _, known := t.comments[value]; s.verdicts() && !known {
				continue
			}
			mine[key] = value
		}
	}
	return nil
}

// adopt takes over ranges of sources that are not decided.
func (s setSpec) adopt(mine, have elements, decided map[string]bool) {
	for key := range have {
		if !decided[s.about(key, "")] {
			mine[key] = ""
		}
	}
}

func (s setSpec) union(a, b elements) elements {
	width := int(s.key[0].Bytes)
	var list []interval
	for key := range a {
		list = append(list, intervalOf(key, width))
	}
	for key := range b {
		list = append(list, intervalOf(key, width))
	}
	out := make(elements)
	for _, i := range mergeIntervals(list) {
		out[string(i.key())] = ""
	}
	return out
}

// content returns what the kernel holds once the target is written, with
// whatever was left of what is not ours.
func (t *target) content(left content) *content {
	left.exists, left.broken = true, ""
	for name, list := range left.sets {
		if _, wanted := t.sets[name]; !wanted {
			t.sets[name] = list
		}
	}
	left.sets = t.sets
	chains := maps.Clone(left.chains)
	if chains == nil {
		chains = make(map[string][]string)
	}
	maps.Copy(chains, t.comments)
	left.chains = chains
	left.counters = make(map[string]bool)
	for _, n := range counterNames() {
		left.counters[n] = true
	}
	return &left
}

// patch brings what the kernel held up to date with a change of before into after.
func patch(held, before, after map[string]elements) {
	for name, old := range before {
		for key := range old {
			delete(held[name], key)
		}
	}
	for name, list := range after {
		maps.Copy(held[name], list)
	}
}

// batch collects one transaction on the table.
type batch struct {
	conn  *nftables.Conn
	table *nftables.Table
	// What it does, for the log.
	objects, chains, added, removed int
}

func (b *batch) empty() bool { return b.objects+b.chains+b.added+b.removed == 0 }

// write puts into the batch whatever makes have into want. The order matters
// to the kernel: a chain exists before an element or rule that names it, and
// outlives the last one that does. With prune, what is in the table and not
// ours goes too.
func (b *batch) write(have content, want target, prune bool) error {
	if have.broken != "" {
		b.conn.DelTable(b.table)
		b.objects++
		have = content{}
	}
	if !have.exists {
		b.conn.AddTable(b.table)
		b.objects++
	}
	for _, name := range counterNames() {
		if !have.counters[name] {
			b.conn.AddObj(&nftables.NamedObj{Table: b.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
			b.objects++
		}
	}
	for _, s := range setSpecs() {
		_, wanted := want.sets[s.name]
		if _, ok := have.sets[s.name]; wanted && !ok {
			if err := b.conn.AddSet(s.set(b.table), nil); err != nil {
				return fmt.Errorf("adding set %s: %w", s.name, err)
			}
			b.objects++
		}
	}
	for _, ch := range want.chains {
		if _, ok := have.chains[ch.name]; !ok {
			b.addChain(ch)
		}
	}
	for _, s := range setSpecs() {
		if _, wanted := want.sets[s.name]; !wanted {
			continue
		}
		if err := b.writeElements(s, have.sets[s.name], want.sets[s.name]); err != nil {
			return fmt.Errorf("changing set %s: %w", s.name, err)
		}
	}
	for _, ch := range want.chains {
		b.writeRules(ch, have.chains, want.comments[ch.name])
	}
	if prune {
		b.prune(have, want)
	}
	return nil
}

func (b *batch) addChain(ch chain) {
	c := &nftables.Chain{Table: b.table, Name: ch.name}
	if ch.hook != nil {
		policy := nftables.ChainPolicyAccept
		c.Type, c.Hooknum, c.Policy = ch.hook.kind, ch.hook.point, &policy
		c.Priority = new(ch.hook.priority)
	}
	b.conn.AddChain(c)
	b.chains++
}

// writeRules fills a chain, and refills one whose rules are not what they should be.
func (b *batch) writeRules(ch chain, have map[string][]string, comments []string) {
	got, ok := have[ch.name]
	if ok && slices.Equal(got, comments) {
		return
	}
	c := &nftables.Chain{Table: b.table, Name: ch.name}
	if ok {
		b.conn.FlushChain(c)
		b.chains++
	}
	for i, r := range ch.rules {
		b.conn.AddRule(&nftables.Rule{
			Table: b.table, Chain: c, Exprs: r.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, comments[i]),
		})
	}
}

// writeElements deletes before it adds: a changed value is both, at once for packets.
func (b *batch) writeElements(s setSpec, have, want elements) error {
	var add, del []nftables.SetElement
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if value, ok := want[key]; !ok || value != have[key] {
			del = append(del, s.encode(key, "")...)
			b.removed++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if value, ok := have[key]; !ok || value != want[key] {
			add = append(add, s.encode(key, want[key])...)
			b.added++
		}
	}
	set := s.set(b.table)
	if err := b.conn.SetDeleteElements(set, del); err != nil {
		return fmt.Errorf("deleting elements: %w", err)
	}
	if err := b.conn.SetAddElements(set, add); err != nil {
		return fmt.Errorf("adding elements: %w", err)
	}
	return nil
}

// encode returns an element in the library's form: two for an interval.
func (s setSpec) encode(key, value string) []nftables.SetElement {
	switch {
	case s.ranges():
		return []nftables.SetElement{{Key: []byte(key[:len(key)/2]), KeyEnd: []byte(key[len(key)/2:])}}
	case s.interval:
		width := int(s.key[0].Bytes)
		if len(key) == width {
			return []nftables.SetElement{{Key: []byte(key), IntervalOpen: true}}
		}
		return []nftables.SetElement{{Key: []byte(key[:width])}, {Key: []byte(key[width:]), IntervalEnd: true}}
	case s.verdicts() && value != "":
		return []nftables.SetElement{{
			Key: []byte(key), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: value},
		}}
	}
	return []nftables.SetElement{{Key: []byte(key), Val: []byte(value)}}
}

// byteOrder is how nft shows keys: names and marks are native, all else is as on the wire.
func byteOrder(key []nftables.SetDatatype) binaryutil.ByteOrder {
	if len(key) == 1 {
		switch key[0].GetNFTMagic() {
		case nftables.TypeIFName.GetNFTMagic(), nftables.TypeMark.GetNFTMagic(), nftables.TypeCGroupV2.GetNFTMagic():
			return binaryutil.NativeEndian
		}
	}
	return binaryutil.BigEndian
}

// prune removes chains of NICs that are no longer managed, and whatever else is
// in the table and not ours: first all rules of such chains, so that none of
// them holds another, or a set.
func (b *batch) prune(have content, want target) {
	var gone []*nftables.Chain
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		if _, ok := want.comments[name]; !ok {
			gone = append(gone, &nftables.Chain{Table: b.table, Name: name})
		}
	}
	for _, c := range gone {
		b.conn.FlushChain(c)
	}
	for _, s := range setSpecs() {
		_, there := have.sets[s.name]
		if _, wanted := want.sets[s.name]; there && !wanted {
			b.conn.DelSet(&nftables.Set{Table: b.table, Name: s.name})
			b.objects++
		}
	}
	for _, name := range have.otherSets {
		b.conn.DelSet(&nftables.Set{Table: b.table, Name: name})
		b.objects++
	}
	for _, c := range gone {
		b.conn.DelChain(c)
		b.chains++
	}
	for _, o := range have.otherCounters {
		b.conn.DeleteObject(o)
		b.objects++
	}
}
