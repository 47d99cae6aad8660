// Package snat holds the firewall's side of eipnet: marks, source and
// destination NAT, published ports and the guard, all in one nftables table of
// its own, inet eipnet, written over netlink.
//
// The chains are a fixed skeleton (skeleton.go) and know nothing of any
// container; what changes are the elements of the table's sets and maps
// (elements.go). So a packet walks the same few rules whether there is one
// container or ten thousand, and a pass that changes one pin writes a handful
// of elements in one transaction.
//
// Beside the table there is [DockerUser], the one thing that has to be written
// into somebody else's: accepts in Docker's own chain for such things.
package snat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// maxAttempts bounds how often a pass starts again because somebody else
// changed the ruleset between our reading and our writing. That only happens
// where the kernel cannot give us the table for ourselves.
const maxAttempts = 5

// Options are what a Manager needs.
type Options struct {
	Log   *slog.Logger // nil: silent
	NetNS int          // file descriptor of the network namespace; 0: the present one
	// Shared: the tables are not taken for the Manager's own, and others can
	// change them, as on a kernel without persistent ownership.
	Shared bool
}

// Manager keeps the kernel's table inet eipnet. Its methods may be called from
// several goroutines; they take turns.
//
// The table is owned: as long as the Manager's netlink socket is open nobody
// else can change, flush or delete it, and when the process is gone it stays.
// So it is read once and then known. On a kernel that has no persistent
// ownership (before 6.9) it is read again whenever anything changed in the
// namespace's ruleset since our last write.
type Manager struct {
	log   *slog.Logger
	table *nftables.Table
	owned bool

	mu     sync.Mutex
	conn   *nftables.Conn
	closed bool
	have   *content // what the kernel holds; nil: not known
	gen    uint32   // generation of the ruleset that have belongs to, where not owned
	// last is the firewall that the table holds, just that and nothing else;
	// nil: not known, or have differs from it.
	last   *plan.Firewall
	bridge spoofTable // table bridge eipnet
	wrote  []string   // see Wrote

	culprit atomic.Pointer[string]
}

// Counter is a named counter of the table.
type Counter struct{ Packets, Bytes uint64 }

// New opens the lasting netlink socket and claims the table, which is created
// (empty) if it is not there. It fails if another live process holds it.
func New(opts Options) (*Manager, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(opts.NetNS))
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket for nftables: %w", err)
	}
	m := &Manager{log: cmp.Or(opts.Log, slog.New(slog.DiscardHandler)), conn: conn}
	if err := m.claim(opts.Shared); err != nil {
		_ = conn.CloseLasting() // the first error is the one that says something
		return nil, err
	}
	return m, nil
}

// claim takes ownership of the table, where the kernel has that.
func (m *Manager) claim(shared bool) error {
	flags := []nftables.TableFlags{nftables.TableFlagOwner | nftables.TableFlagPersist, 0}
	if shared {
		// A table that was owned keeps this flag, and only one that has it can be owned later on.
		flags[0] = nftables.TableFlagPersist
	}
	var errs []error
	for _, f := range flags {
		m.table = &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet, Flags: f}
		m.owned = f&nftables.TableFlagOwner != 0
		m.conn.AddTable(m.table)
		err := m.conn.Flush()
		if err == nil {
			m.log.Debug("claimed the nftables table", slog.Bool("owned", m.owned))
			return nil
		}
		if errors.Is(err, unix.EPERM) {
			return m.denied(err)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("claiming table inet %s: %w", tableName, errors.Join(errs...))
}

// denied says why the kernel refused: another owner, or no privilege.
func (m *Manager) denied(err error) error {
	t, listErr := m.conn.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if listErr == nil && t.Owner != 0 {
		return fmt.Errorf("another eipnet (netlink port %d, as a rule its process id) holds table inet %s: %w",
			t.Owner, tableName, err)
	}
	return fmt.Errorf("claiming table inet %s (CAP_NET_ADMIN is needed): %w", tableName, err)
}

// Owned reports whether the kernel keeps everybody else from the table.
func (m *Manager) Owned() bool { return m.owned }

// Apply makes the table hold just what the firewall says, in one transaction:
// all of it or, with an error, nothing. It reports whether anything was
// written; applying the same again writes nothing.
//
// Without prune nothing is removed, only added and changed: for the time before
// all containers are known.
func (m *Manager) Apply(ctx context.Context, fw plan.Firewall, prune bool) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, errors.New("applying the firewall: the manager is closed")
	}
	for range maxAttempts {
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("applying the firewall: %w", err)
		}
		changed, err = m.pass(fw, prune)
		if !errors.Is(err, unix.ERESTART) {
			break
		}
		m.log.Debug("the ruleset changed while it was read")
	}
	if err != nil {
		return false, fmt.Errorf("applying the firewall: %w", err)
	}
	return changed, nil
}

// pass reads, compares and writes once.
func (m *Manager) pass(fw plan.Firewall, prune bool) (bool, error) {
	have, gen, err := m.current(fw.Mask)
	if err != nil {
		return false, err
	}
	whole := have
	before, after, partial := plan.Firewall{}, fw, false
	if prune && m.last != nil {
		before, after, partial = delta(*m.last, fw)
	}
	want, err := render(after)
	if err != nil {
		return false, err
	}
	if partial {
		if have.sets, err = renderElements(before); err != nil {
			return false, err
		}
	}
	if !prune {
		if err := want.keep(have, fw); err != nil {
			return false, err
		}
	}
	b := &batch{conn: m.conn, table: m.table}
	if err := b.write(have, want, prune); err != nil {
		return false, errors.Join(err, m.flush(0)) // the flush drops the broken batch
	}
	if !b.empty() {
		if err := m.flush(gen); err != nil {
			return false, fmt.Errorf("writing table inet %s: %w", tableName, err)
		}
		m.wrote = append(m.wrote, "table inet "+tableName)
		m.log.Info("changed the nftables table",
			slog.Int("elements_added", b.added), slog.Int("elements_removed", b.removed),
			slog.Int("chains_changed", b.chains), slog.Int("objects_changed", b.objects), slog.String("replaced", have.broken))
	}
	switch {
	case partial:
		patch(whole.sets, have.sets, want.sets)
	case prune || have.broken != "":
		m.have = want.content(content{})
	default:
		m.have = want.content(have)
	}
	m.last = nil
	if prune {
		fw = clone(fw)
		m.last = &fw
	}
	return !b.empty(), nil
}

// current returns what the table holds, and the generation that this belongs to (0 where it does not matter).
func (m *Manager) current(mask model.Mask) (content, uint32, error) {
	if m.owned {
		if m.have != nil {
			return *m.have, 0, nil
		}
		c, err := m.read(mask)
		return c, 0, err
	}
	gen, err := m.conn.GetGen()
	if err != nil {
		return content{}, 0, fmt.Errorf("asking for the ruleset's generation: %w", err)
	}
	if m.have != nil && gen.ID == m.gen {
		return *m.have, gen.ID, nil
	}
	c, err := m.read(mask)
	m.gen = gen.ID
	return c, gen.ID, err
}

func (m *Manager) read(mask model.Mask) (content, error) {
	bases := make(map[string]*hook)
	for _, ch := range append(skeleton(mask), cgroupChains(mask, nil)...) {
		bases[ch.name] = ch.hook
	}
	m.have, m.last = nil, nil
	c, err := read(m.conn, bases)
	if err != nil {
		return content{}, err
	}
	m.have = &c
	return c, nil
}

// flush sends the batch. After a failure nothing that we believed counts.
func (m *Manager) flush(gen uint32) error {
	if err := m.conn.FlushWithGenID(gen); err != nil {
		m.have, m.last = nil, nil
		return err
	}
	m.gen = gen + 1
	crash.Point("table inet " + tableName)
	return nil
}

// Pinned lists the addresses that the table pins as it stands: before the first
// Apply, those that an earlier process pinned.
func (m *Manager) Pinned() ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("listing what is pinned: the manager is closed")
	}
	return pinned(m.conn)
}

// Counters returns the table's counters by name.
func (m *Manager) Counters() (map[string]Counter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("listing counters: the manager is closed")
	}
	objects, err := m.conn.GetNamedObjects(m.table)
	if err != nil {
		return nil, fmt.Errorf("listing counters: %w", err)
	}
	out := make(map[string]Counter)
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				out[named.Name] = Counter{Packets: c.Packets, Bytes: c.Bytes}
			}
		}
	}
	return out, nil
}

// Remove deletes the table. One that is not there is fine.
func (m *Manager) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("removing the firewall: the manager is closed")
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing the firewall: %w", err)
	}
	m.conn.DelTable(m.table)
	if err := m.flush(0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing table inet %s: %w", tableName, err)
	}
	m.have, m.last = nil, nil
	m.log.Info("removed the nftables table")
	return nil
}

// Close gives up ownership and leaves the table in place. Closing twice is fine.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if err := m.conn.CloseLasting(); err != nil {
		return fmt.Errorf("closing the netlink socket: %w", err)
	}
	return nil
}
