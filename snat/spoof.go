package snat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// CounterSpoofed counts the frames that table bridge eipnet dropped; see [Manager.Spoofed].
const CounterSpoofed = "spoofed"

// BridgePort is what the plan calls a port of a container bridge.
//
// Its MAC and addresses belong to it: no other listed port may send with them,
// and no port at all, of any bridge, may send with the addresses to the host.
// One without either claims nothing and is only kept from what belongs to
// others; list every port of a bridge on which something is claimed. With Only
// and no MAC nothing may come in. A bridge may itself be listed as its own
// port, with its MAC and addresses: then no container claims to be the gateway.
// Link-local IPv6 addresses belong to nobody and are passed over.
type BridgePort = plan.BridgePort

// spoofTable is what a Manager knows of table bridge eipnet; guarded by its mutex.
type spoofTable struct {
	table   *nftables.Table
	claimed bool
	have    *content     // what the kernel holds; nil: not known
	gen     uint32       // generation of the ruleset that have belongs to, where not owned
	last    []BridgePort // what the table holds, just that; nil: not known
}

func (s *spoofTable) forget() { s.have, s.last, s.claimed = nil, nil, false }

// ApplyBridge makes the kernel's table bridge eipnet hold just what the ports
// say, in one transaction, and reports whether anything was written; applying
// the same again writes nothing. The table is the Manager's own as table inet
// eipnet is, and stays when the process is gone. It is made with the first
// port; with prune and no ports it is removed.
//
// Without prune nothing is removed, only added: for the time before all
// containers are known. A claim to an address that table inet eipnet pins stays
// until another port has it, or the pin is gone.
func (m *Manager) ApplyBridge(ctx context.Context, ports []BridgePort, prune bool) (changed bool, err error) {
	return m.applySpoof(ctx, ports, prune, false)
}

// ClaimBridge comes before [Manager.Apply], as ApplyBridge comes behind it: it
// adds what ApplyBridge would, but gives no address that is claimed already to
// another port, as what that port sends would leave by the pin that the address
// has as yet. Nothing is removed.
func (m *Manager) ClaimBridge(ctx context.Context, ports []BridgePort) (changed bool, err error) {
	return m.applySpoof(ctx, ports, false, true)
}

func (m *Manager) applySpoof(ctx context.Context, ports []BridgePort, prune, claim bool) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, errors.New("applying anti-spoof: the manager is closed")
	}
	s := &m.bridge
	s.table = &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge, Flags: m.table.Flags}
	for range maxAttempts {
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("applying anti-spoof: %w", err)
		}
		changed, err = m.spoofPass(s, ports, prune, claim)
		if !errors.Is(err, unix.ERESTART) {
			break
		}
		m.log.Debug("the ruleset changed while it was read")
	}
	if err != nil {
		return false, fmt.Errorf("applying anti-spoof: %w", err)
	}
	return changed, nil
}

// spoofPass reads, compares and writes once.
func (m *Manager) spoofPass(s *spoofTable, ports []BridgePort, prune, claim bool) (bool, error) {
	have, gen, err := m.spoofContent(s)
	if err != nil {
		return false, err
	}
	var pins map[model.Family]elements
	if prune {
		if pins, err = m.pinnedNow(); err != nil {
			return false, err
		}
	}
	switch {
	case len(ports) == 0 && !have.exists:
		return false, nil
	case len(ports) == 0 && prune && !have.claims(pins):
		return m.removeSpoof(s, gen)
	case s.last != nil && slices.EqualFunc(s.last, ports, samePort):
		return false, nil
	}
	want, err := renderSpoof(ports)
	if err != nil {
		return false, err
	}
	if claim {
		want.withhold(have)
	}
	kept := prune && want.retain(have, pins)
	if !prune {
		for name, list := range have.sets {
			for key := range list {
				want.sets[name][key] = ""
			}
		}
	}
	b := &batch{conn: m.conn, table: s.table}
	if err := b.writeSpoof(have, want, prune); err != nil {
		return false, errors.Join(err, m.flushSpoof(s, 0)) // the flush drops the broken batch
	}
	if !b.empty() {
		if err := m.flushSpoof(s, gen); err != nil {
			return false, fmt.Errorf("writing table bridge %s: %w", tableName, err)
		}
		s.claimed = m.owned
		m.wrote = append(m.wrote, "table bridge "+tableName)
		m.log.Info("changed the anti-spoof table",
			slog.Int("elements_added", b.added), slog.Int("elements_removed", b.removed),
			slog.Int("chains_changed", b.chains), slog.Int("objects_changed", b.objects), slog.String("replaced", have.broken))
	}
	left := have
	if prune || have.broken != "" {
		left = content{}
	}
	s.have = want.spoofContent(left)
	s.last = nil
	if prune && !kept {
		s.last = clonePorts(ports)
	}
	return !b.empty(), nil
}

// withhold takes addresses out of the target's ports that somebody else claims.
func (t *target) withhold(have content) {
	for _, f := range model.Families {
		for key := range t.sets[named("port", f)] {
			_, has := have.sets[named("port", f)][key]
			if _, claimed := have.sets[named("claimed", f)][key[unix.IFNAMSIZ:]]; claimed && !has {
				delete(t.sets[named("port", f)], key)
			}
		}
	}
}

// retain keeps claims whose address is pinned and claimed by no port of the
// target, and reports whether there are any. Docker may list a container that is
// gone, and its port with it: until its pin goes, too, nobody else may bear its address.
func (t *target) retain(have content, pins map[model.Family]elements) (kept bool) {
	for _, f := range model.Families {
		ports, claimed := named("port", f), named("claimed", f)
		orphans := make(map[string]bool)
		for key := range have.sets[claimed] {
			_, pinned := pins[f][key]
			if _, wanted := t.sets[claimed][key]; pinned && !wanted {
				t.sets[claimed][key], orphans[key], kept = "", true, true
			}
		}
		for key := range have.sets[ports] {
			if orphans[key[unix.IFNAMSIZ:]] {
				t.sets[ports][key] = ""
			}
		}
	}
	return kept
}

// claims reports whether any of the addresses is claimed.
func (c *content) claims(pins map[model.Family]elements) bool {
	for f, addrs := range pins {
		for key := range addrs {
			if _, ok := c.sets[named("claimed", f)][key]; ok {
				return true
			}
		}
	}
	return false
}

// pinnedNow are the addresses that table inet eipnet pins, by the key of their element.
func (m *Manager) pinnedNow() (map[model.Family]elements, error) {
	out := make(map[model.Family]elements)
	if m.have != nil {
		for _, f := range model.Families {
			out[f] = m.have.sets[named("pinned", f)]
		}
		return out, nil
	}
	list, err := pinned(m.conn)
	for _, a := range list {
		f := model.FamilyOf(a)
		if out[f] == nil {
			out[f] = make(elements)
		}
		out[f][string(a.AsSlice())] = ""
	}
	return out, err
}

// Claimed lists the addresses that belong behind some port as the table stands:
// those of eipnet networks, of what was pinned on others, and gateways.
func (m *Manager) Claimed() ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("listing what is claimed: the manager is closed")
	}
	return addresses(m.conn, nftables.TableFamilyBridge, "claimed")
}

// spoofContent returns what the table holds, and the generation that this
// belongs to (0 where it does not matter). A table that is there is claimed
// before it is read; one that is not cannot be, so that is looked at each time.
func (m *Manager) spoofContent(s *spoofTable) (content, uint32, error) {
	if m.owned {
		if s.claimed && s.have != nil {
			return *s.have, 0, nil
		}
		if err := m.claimSpoof(s); err != nil || !s.claimed {
			return content{}, 0, err
		}
		err := m.readSpoof(s)
		if err != nil {
			return content{}, 0, err
		}
		return *s.have, 0, nil
	}
	gen, err := m.conn.GetGen()
	if err != nil {
		return content{}, 0, fmt.Errorf("asking for the ruleset's generation: %w", err)
	}
	if s.have == nil || gen.ID != s.gen {
		if err := m.readSpoof(s); err != nil {
			return content{}, 0, err
		}
		s.gen = gen.ID
	}
	return *s.have, gen.ID, nil
}

// claimSpoof takes ownership of the table, if it is there.
func (m *Manager) claimSpoof(s *spoofTable) error {
	s.forget()
	t, err := m.conn.ListTableOfFamily(tableName, nftables.TableFamilyBridge)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing table bridge %s: %w", tableName, err)
	}
	m.conn.AddTable(s.table)
	if err := m.flushSpoof(s, 0); err != nil {
		if errors.Is(err, unix.EPERM) && t.Owner != 0 {
			return fmt.Errorf("netlink port %d (as a rule a process id) holds table bridge %s: %w", t.Owner, tableName, err)
		}
		return fmt.Errorf("claiming table bridge %s: %w", tableName, err)
	}
	s.claimed = true
	return nil
}

func (m *Manager) readSpoof(s *spoofTable) error {
	s.have, s.last = nil, nil
	c, err := readSpoofTable(m.conn)
	if err != nil {
		return err
	}
	s.have = &c
	return nil
}

func (m *Manager) removeSpoof(s *spoofTable, gen uint32) (bool, error) {
	m.conn.DelTable(s.table)
	if err := m.flushSpoof(s, gen); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("removing table bridge %s: %w", tableName, err)
	}
	s.forget()
	m.log.Info("removed the anti-spoof table")
	return true, nil
}

// flushSpoof sends the batch. After a failure nothing that we believed of the
// table counts. What is known of table inet eipnet stays known: the generation
// that it belongs to moves on where ours was the only change since.
func (m *Manager) flushSpoof(s *spoofTable, gen uint32) error {
	if err := m.conn.FlushWithGenID(gen); err != nil {
		s.forget()
		return err
	}
	crash.Point("table bridge " + tableName)
	if gen != 0 {
		s.gen = gen + 1
		if m.gen == gen {
			m.gen = gen + 1
		}
	}
	return nil
}

// Spoofed returns how many frames were dropped because they claimed to be
// another container's; nothing where there is no table.
func (m *Manager) Spoofed() (Counter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Counter{}, errors.New("reading the anti-spoof counter: the manager is closed")
	}
	table, err := m.conn.ListTableOfFamily(tableName, nftables.TableFamilyBridge)
	if errors.Is(err, unix.ENOENT) {
		return Counter{}, nil
	}
	if err != nil {
		return Counter{}, fmt.Errorf("listing table bridge %s: %w", tableName, err)
	}
	objects, err := m.conn.GetNamedObjects(table)
	if err != nil {
		return Counter{}, fmt.Errorf("reading the anti-spoof counter: %w", err)
	}
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok && named.Name == CounterSpoofed {
			if c, ok := named.Obj.(*expr.Counter); ok {
				return Counter{Packets: c.Packets, Bytes: c.Bytes}, nil
			}
		}
	}
	return Counter{}, nil
}

func samePort(p, q BridgePort) bool {
	return p.Bridge == q.Bridge && p.Name == q.Name && p.MAC == q.MAC && p.Only == q.Only && p.Bound == q.Bound && slices.Equal(p.Addrs, q.Addrs)
}

// clonePorts copies what ApplyBridge's caller may change later.
func clonePorts(ports []BridgePort) []BridgePort {
	ports = slices.Clone(ports)
	for i := range ports {
		ports[i].Addrs = slices.Clone(ports[i].Addrs)
	}
	return ports
}
