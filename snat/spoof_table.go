package snat

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// spoofSpecs lists every set of table bridge eipnet.
//
//	set ports      { type ifname }                # all listed ports
//	set only       { type ifname }                # those of driver networks
//	set bound      { type ifname }                # those of pinned and held containers on stock networks
//	set portmac    { type ifname . ether_addr }   # port . its MAC
//	set claimedmac { type ether_addr }            # MACs that belong to a port
//	set port4      { type ifname . ipv4_addr }    # port . its addresses
//	set claimed4   { type ipv4_addr }             # addresses that belong to a port
//	set port6, claimed6
func spoofSpecs() []setSpec {
	type types = []nftables.SetDatatype
	name := nftables.TypeIFName
	specs := []setSpec{
		{name: "ports", key: types{name}},
		{name: "only", key: types{name}},
		{name: "bound", key: types{name}},
		{name: "portmac", key: types{name, nftables.TypeEtherAddr}},
		{name: "claimedmac", key: types{nftables.TypeEtherAddr}},
	}
	for _, f := range model.Families {
		addr := nftables.TypeIPAddr
		if f == model.IPv6 {
			addr = nftables.TypeIP6Addr
		}
		specs = append(specs,
			setSpec{name: named("port", f), key: types{name, addr}},
			setSpec{name: named("claimed", f), key: types{addr}})
	}
	return specs
}

// renderSpoof returns the target for the ports. It refuses what cannot be,
// before anything of it reaches the kernel.
func renderSpoof(ports []BridgePort) (target, error) {
	r := renderer{sets: make(map[string]elements)}
	for _, s := range spoofSpecs() {
		r.sets[s.name] = make(elements)
	}
	bridges := make(map[string]string, len(ports))
	for _, p := range ports {
		if other, ok := bridges[p.Name]; ok && other != p.Bridge {
			r.fail("rendering port %s: it is on bridge %s and on %s", p.Name, other, p.Bridge)
		}
		bridges[p.Name] = p.Bridge
		r.bridgePort(p)
	}
	t := target{sets: r.sets, comments: make(map[string][]string)}
	return t, errors.Join(append(r.errs, t.add(spoofSkeleton()...))...)
}

func (r *renderer) bridgePort(p BridgePort) {
	name := r.link(p.Name)
	r.put("ports", "", name)
	if p.Only {
		r.put("only", "", name)
	}
	if p.Bound {
		r.put("bound", "", name)
	}
	if p.MAC != "" {
		mac, err := net.ParseMAC(p.MAC)
		if err != nil || len(mac) != 6 {
			r.fail("rendering port %s: %q is no Ethernet address", p.Name, p.MAC)
			return
		}
		r.put("portmac", "", name, mac)
		r.put("claimedmac", "", mac)
	}
	for _, a := range p.Addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() {
			r.fail("rendering port %s: %v is no container's address", p.Name, a)
			continue
		}
		if a.IsLinkLocalUnicast() && a.Is6() {
			continue
		}
		f := model.FamilyOf(a)
		r.put(named("port", f), "", name, a.AsSlice())
		r.put(named("claimed", f), "", a.AsSlice())
	}
}

// readSpoofTable lists the whole table.
func readSpoofTable(conn *nftables.Conn) (content, error) {
	table, err := conn.ListTableOfFamily(tableName, nftables.TableFamilyBridge)
	if errors.Is(err, unix.ENOENT) {
		return content{}, nil
	}
	if err != nil {
		return content{}, fmt.Errorf("listing table bridge %s: %w", tableName, err)
	}
	c := content{
		exists: true, sets: make(map[string]elements),
		chains: make(map[string][]string), counters: make(map[string]bool),
	}
	if err := errors.Join(c.readSpoofChains(conn, table), c.readSpoofSets(conn, table), c.readSpoofCounters(conn, table)); err != nil {
		return content{}, err
	}
	return c, nil
}

func (c *content) readSpoofChains(conn *nftables.Conn, table *nftables.Table) error {
	bases := make(map[string]*hook)
	for _, ch := range spoofSkeleton() {
		bases[ch.name] = ch.hook
	}
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return fmt.Errorf("listing chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table == nil || ch.Table.Name != table.Name {
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

func (c *content) readSpoofSets(conn *nftables.Conn, table *nftables.Table) error {
	sets, err := conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("listing sets: %w", err)
	}
	specs := spoofSpecs()
	for _, s := range sets {
		i := slices.IndexFunc(specs, func(spec setSpec) bool { return spec.name == s.Name })
		switch {
		case i < 0:
			if !s.Anonymous { // those of a rule go with their rule
				c.otherSets = append(c.otherSets, s.Name)
			}
			continue
		case !specs[i].matches(padded(s)):
			c.breakBy("set %s has another type", s.Name)
			continue
		}
		list, err := conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("listing set %s: %w", s.Name, err)
		}
		c.sets[s.Name] = specs[i].decode(list)
	}
	return nil
}

// padded returns the set with its key's length as [setSpec.set] has it.
func padded(s *nftables.Set) *nftables.Set {
	out := *s
	out.KeyType.Bytes = (s.KeyType.Bytes + 3) / 4 * 4
	return &out
}

func (c *content) readSpoofCounters(conn *nftables.Conn, table *nftables.Table) error {
	objects, err := conn.GetNamedObjects(table)
	if err != nil {
		return fmt.Errorf("listing counters: %w", err)
	}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		switch {
		case !ok:
		case named.Type == nftables.ObjTypeCounter && named.Name == CounterSpoofed:
			c.counters[named.Name] = true
		default:
			c.otherCounters = append(c.otherCounters, named)
		}
	}
	return nil
}

// spoofContent returns what the kernel holds once the target is written, with
// whatever was left of what is not ours.
func (t *target) spoofContent(left content) *content {
	chains := maps.Clone(t.comments)
	for name, rules := range left.chains {
		if _, ok := chains[name]; !ok {
			chains[name] = rules
		}
	}
	return &content{
		exists: true, sets: t.sets, chains: chains, counters: map[string]bool{CounterSpoofed: true},
		otherSets: left.otherSets, otherCounters: left.otherCounters,
	}
}

// writeSpoof puts into the batch whatever makes have into want; see [batch.write].
func (b *batch) writeSpoof(have content, want target, prune bool) error {
	if have.broken != "" {
		b.conn.DelTable(b.table)
		b.objects++
		have = content{}
	}
	if !have.exists {
		b.conn.AddTable(b.table)
		b.objects++
	}
	if !have.counters[CounterSpoofed] {
		b.conn.AddObj(&nftables.NamedObj{Table: b.table, Name: CounterSpoofed, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		b.objects++
	}
	for _, s := range spoofSpecs() {
		if _, ok := have.sets[s.name]; !ok {
			set := s.set(b.table)
			if !set.Concatenation {
				set.KeyType = s.key[0] // a MAC alone is six bytes long, in a concatenation eight
			}
			if err := b.conn.AddSet(set, nil); err != nil {
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
	for _, s := range spoofSpecs() {
		gone, fresh := onlyIn(have.sets[s.name], want.sets[s.name]), onlyIn(want.sets[s.name], have.sets[s.name])
		if err := b.writeElements(s, gone, fresh); err != nil {
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

// onlyIn returns the elements of a that b lacks.
func onlyIn(a, b elements) elements {
	out := make(elements)
	for key := range a {
		if _, ok := b[key]; !ok {
			out[key] = ""
		}
	}
	return out
}
