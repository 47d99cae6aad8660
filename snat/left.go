package snat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// Tables are the tables of ours that the kernel of one network namespace
// holds, for looking at and removing them while no Manager is there.
type Tables struct {
	conn *nftables.Conn
}

// Table is a table of ours as the kernel holds it.
type Table struct {
	Family string // "inet", "bridge"
	Owner  uint32 // netlink port of the process that owns it, as a rule its id; 0: nobody
}

func (t Table) String() string { return "table " + t.Family + " " + tableName }

// families are those of our tables, in nft's words.
var families = []struct {
	name   string
	family nftables.TableFamily
}{{"inet", nftables.TableFamilyINet}, {"bridge", nftables.TableFamilyBridge}}

// NewTables looks into the network namespace of a file descriptor; 0: the present one.
func NewTables(netNS int) (*Tables, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(netNS))
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket for nftables: %w", err)
	}
	return &Tables{conn}, nil
}

// List returns the tables that are there.
func (t *Tables) List() ([]Table, error) {
	var out []Table
	for _, f := range families {
		got, err := t.conn.ListTableOfFamily(tableName, f.family)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("listing table %s %s: %w", f.name, tableName, err)
		default:
			out = append(out, Table{f.name, got.Owner})
		}
	}
	return out, nil
}

// Pinned returns the addresses whose packets the table gives a NIC's address.
func (t *Tables) Pinned() ([]netip.Addr, error) { return pinned(t.conn) }

func pinned(conn *nftables.Conn) ([]netip.Addr, error) {
	return addresses(conn, nftables.TableFamilyINet, "pinned")
}

// addresses lists what the sets of that name hold, of both families. A set that is not there holds nothing.
func addresses(conn *nftables.Conn, family nftables.TableFamily, sets string) ([]netip.Addr, error) {
	table := &nftables.Table{Name: tableName, Family: family}
	var out []netip.Addr
	for _, f := range model.Families {
		set, err := conn.GetSetByName(table, named(sets, f))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("finding set %s: %w", named(sets, f), err)
		}
		list, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("listing set %s: %w", named(sets, f), err)
		}
		for _, e := range list {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// Remove deletes the tables, in one transaction. None is fine; one that a live
// process owns is an error.
func (t *Tables) Remove(ctx context.Context) error {
	there, err := t.List()
	if err != nil || len(there) == 0 {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing tables: %w", err)
	}
	for _, f := range families {
		for _, have := range there {
			if have.Family == f.name {
				t.conn.DelTable(&nftables.Table{Name: tableName, Family: f.family})
			}
		}
	}
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing tables: %w", err)
	}
	return nil
}

// Left lists what of ours is in iptables' chains, in any of its flavours.
func (d *DockerUser) Left(ctx context.Context) ([]string, error) {
	var out []string
	var errs []error
	for _, t := range d.tools {
		if !t.inUse() {
			continue
		}
		now, err := t.look(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("looking into %s: %w", t.name, err))
			continue
		}
		for _, rule := range slices.Concat(now.user, now.forward) {
			if isJump(rule) {
				out = append(out, t.name+" rule "+rule)
			}
		}
		if now.exists {
			out = append(out, t.name+" chain "+eipnetForward)
		}
	}
	return out, errors.Join(errs...)
}

// Firewalld reports whether firewalld filters by nftables in the present network namespace.
func Firewalld() bool {
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	_, err = conn.ListTableOfFamily("firewalld", nftables.TableFamilyINet)
	return err == nil
}
