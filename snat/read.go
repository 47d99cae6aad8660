package snat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// content is what the kernel's table holds.
type content struct {
	exists bool
	// broken says why the table cannot be mended in place: a set of another
	// type, a chain at another hook. Empty: it can.
	broken   string
	sets     map[string]elements // of setSpecs, as far as they exist
	chains   map[string][]string // all chains → comments of their rules
	counters map[string]bool     // of counterNames, as far as they exist
	// What is in our table and not ours.
	otherSets     []string
	otherCounters []*nftables.NamedObj
}

// read lists the whole table.
func read(conn *nftables.Conn, bases map[string]*hook) (content, error) {
	table, err := conn.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if errors.Is(err, unix.ENOENT) {
		return content{}, nil
	}
	if err != nil {
		return content{}, fmt.Errorf("listing table inet %s: %w", tableName, err)
	}
	c := content{
		exists: true, sets: make(map[string]elements),
		chains: make(map[string][]string), counters: make(map[string]bool),
	}
	if err := errors.Join(c.readChains(conn, table, bases), c.readSets(conn, table), c.readCounters(conn, table)); err != nil {
		return content{}, err
	}
	return c, nil
}

func (c *content) breakBy(format string, args ...any) {
	if c.broken == "" {
		c.broken = fmt.Sprintf(format, args...)
	}
}

func (c *content) readChains(conn *nftables.Conn, table *nftables.Table, bases map[string]*hook) error {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("listing chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table == nil || ch.Table.Name != tableName {
			continue
		}
		if want, ours := bases[ch.Name]; ours && !want.matches(ch) {
			c.breakBy("chain %s is at another hook", ch.Name)
		}
		rules, err := conn.GetRules(table, ch)
		if err != nil {
			return fmt.Errorf("listing rules of chain %s: %w", ch.Name, err)
		}
		comments := make([]string, len(rules))
		for i, r := range rules {
			comments[i], _ = userdata.GetString(r.UserData, userdata.TypeComment)
		}
		c.chains[ch.Name] = comments
	}
	return nil
}

// matches reports whether a chain of the kernel is a base chain at this hook,
// or none where there is no hook.
func (h *hook) matches(ch *nftables.Chain) bool {
	if h == nil {
		return ch.Hooknum == nil
	}
	return ch.Hooknum != nil && *ch.Hooknum == *h.point && ch.Priority != nil && *ch.Priority == h.priority &&
		ch.Type == h.kind && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyAccept
}

func (c *content) readSets(conn *nftables.Conn, table *nftables.Table) error {
	sets, err := conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("listing sets: %w", err)
	}
	specs := make(map[string]setSpec)
	for _, s := range setSpecs() {
		specs[s.name] = s
	}
	for _, s := range sets {
		spec, ours := specs[s.Name]
		switch {
		case !ours:
			if !s.Anonymous { // those of a rule go with their rule
				c.otherSets = append(c.otherSets, s.Name)
			}
			continue
		case !spec.matches(s):
			c.breakBy("set %s has another type", s.Name)
			continue
		}
		list, err := conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("listing set %s: %w", s.Name, err)
		}
		c.sets[s.Name] = spec.decode(list)
	}
	return nil
}

// set returns the spec in the library's form.
func (s setSpec) set(table *nftables.Table) *nftables.Set {
	set := &nftables.Set{
		Table: table, Name: s.name, Interval: s.interval, IsMap: s.value != nil,
		KeyType: joined(s.key), Concatenation: len(s.key) > 1,
		KeyByteOrder: byteOrder(s.key),
	}
	if s.value != nil {
		set.DataType = nftables.MustConcatSetType(s.value...)
	}
	return set
}

// joined is the type of a concatenation, in which each field is padded. The
// library pads one alone, too; of what is shorter than a register the kernel would
// not take the elements then.
func joined(types []nftables.SetDatatype) nftables.SetDatatype {
	if len(types) == 1 && types[0].Bytes < 4 {
		return types[0]
	}
	return nftables.MustConcatSetType(types...)
}

func (s setSpec) matches(got *nftables.Set) bool {
	want := s.set(got.Table)
	same := func(a, b nftables.SetDatatype) bool { return a.GetNFTMagic() == b.GetNFTMagic() }
	return same(want.KeyType, got.KeyType) && want.KeyType.Bytes == got.KeyType.Bytes &&
		same(want.DataType, got.DataType) && (s.verdicts() || want.DataType.Bytes == got.DataType.Bytes) &&
		want.IsMap == got.IsMap && want.Interval == got.Interval && want.Concatenation == got.Concatenation &&
		!got.HasTimeout && !got.Dynamic && !got.Constant
}

// decode is the reverse of encode, for what the kernel lists.
func (s setSpec) decode(list []nftables.SetElement) elements {
	out := make(elements, len(list))
	if s.interval && !s.ranges() {
		s.decodeIntervals(list, out)
		return out
	}
	for _, e := range list {
		switch {
		case s.ranges():
			out[string(e.Key)+string(e.KeyEnd)] = ""
		case s.verdicts():
			out[string(e.Key)] = decodeVerdict(e.Val)
		default:
			out[string(e.Key)] = string(e.Val)
		}
	}
	return out
}

// decodeIntervals pairs starts with ends. nft itself puts an end at address
// zero in front; it belongs to no start and is nothing.
func (s setSpec) decodeIntervals(list []nftables.SetElement, out elements) {
	slices.SortFunc(list, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
	start := ""
	for _, e := range list {
		if start != "" {
			if e.IntervalEnd {
				out[start+string(e.Key)] = ""
				start = ""
				continue
			}
			out[start] = "" // no end
		}
		if !e.IntervalEnd {
			start = string(e.Key)
		}
	}
	if start != "" {
		out[start] = ""
	}
}

// decodeVerdict returns the chain of a goto. The library leaves a listed
// verdict raw: two nested attributes, the kind and the chain's name. Anything
// but a goto is foreign and decodes to a name that no chain has.
func decodeVerdict(val []byte) string {
	if len(val) < 13 {
		return "?"
	}
	if kind := int32(binary.BigEndian.Uint32(val[4:8])); kind != int32(expr.VerdictGoto) {
		return "?"
	}
	name, _, _ := strings.Cut(string(val[12:]), "\x00")
	return name
}

func (c *content) readCounters(conn *nftables.Conn, table *nftables.Table) error {
	objects, err := conn.GetNamedObjects(table)
	if err != nil {
		return fmt.Errorf("listing counters: %w", err)
	}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if named.Type == nftables.ObjTypeCounter && slices.Contains(counterNames(), named.Name) {
			c.counters[named.Name] = true
		} else {
			c.otherCounters = append(c.otherCounters, named)
		}
	}
	return nil
}
