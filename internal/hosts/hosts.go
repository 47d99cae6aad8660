// Package hosts keeps host entries: addresses of the host's own programs, each
// on one NIC. Entries are made by command (`eipnet host add`), or declared in
// files of a folder that is watched. They are persisted; the reconcile loop
// makes bridge, rules and ports of them.
package hosts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// Store is what is persisted, as far as it is needed here.
type Store interface {
	Networks() []model.Network
	Endpoints() []model.Endpoint
	HostEntries() []model.HostEntry
	PutHostEntry(e model.HostEntry) error
	DeleteHostEntry(name string) error
	DeleteRebind(id string) error
}

// Core is the reconcile loop.
type Core interface {
	Sync(ctx context.Context, subjects ...string) error
	Host(ctx context.Context) (model.Host, error)
	PortError(endpoint string) error
	EIPs() map[netip.Addr]netip.Addr
}

// Options are a Keeper's parts; all are required but the folder.
type Options struct {
	Log   *slog.Logger
	Store Store
	Core  Core
	// Flush forgets the flows of the addresses.
	Flush func(ctx context.Context, addrs []netip.Addr) (int, error)
	// Seen reports whether Docker has answered yet: passes take nothing away before.
	Seen func() bool
	Poke func()
	Dir  string // of files that declare entries; empty: none
}

// Keeper keeps host entries. Its methods may be called concurrently.
type Keeper struct {
	o Options

	changing sync.Mutex // one change at a time

	mu       sync.Mutex
	problems []model.Problem // with files
}

// New returns a Keeper.
func New(o Options) *Keeper { return &Keeper{o: o} }

// undoTimeout bounds what is done though the caller has gone.
const undoTimeout = 20 * time.Second

// ErrUnknown says that there is no such entry.
var ErrUnknown = errors.New("there is no such host entry")

var (
	errSilent    = errors.New("docker has not answered since the daemon was started, and nothing is taken away before; start Docker, or try again")
	errSilentAdd = errors.New("docker has not answered since the daemon was started, so which addresses and bridges are its is not known yet; start Docker, or try again")
)

// List lists the entries, sorted by name.
func (k *Keeper) List() []model.HostEntry {
	return slices.DeleteFunc(k.o.Store.HostEntries(), func(e model.HostEntry) bool { return e.Leaving })
}

// Add makes an entry, and returns when it is in place. One that is there just so
// is success. On an error nothing of it is left.
func (k *Keeper) Add(ctx context.Context, e model.HostEntry) error {
	k.changing.Lock()
	defer k.changing.Unlock()
	if !k.o.Seen() {
		return errSilentAdd
	}
	e.File, e.Leaving = "", false
	host, err := k.o.Core.Host(ctx)
	if err != nil {
		return fmt.Errorf("looking at this host's networks: %w", err)
	}
	if err := k.settle(&e, host); err != nil {
		return err
	}
	if old, there := k.entry(e.Name); there {
		switch {
		case old.Same(e):
			return nil
		case old.File != "":
			return fmt.Errorf("%s is declared in %s", e.Name, old.File)
		case !old.Leaving:
			return fmt.Errorf("%s is there already, and says something else: eipnet host rm %s", e.Name, e.Name)
		}
		if err := k.remove(ctx, old); err != nil {
			return err
		}
	}
	pin, err := model.ParsePinOptions(e.Options)
	if err != nil {
		return err
	}
	nic, _, err := host.Resolve(pin.Selector, k.o.Core.EIPs())
	if err != nil {
		return err
	}
	if _, ok := nic.Addr(model.IPv4); !ok {
		return fmt.Errorf("%s has no IPv4 address", nic.Name)
	}
	return k.put(ctx, e)
}

// put stores a new entry, which nobody else's may stand against, and has it made.
func (k *Keeper) put(ctx context.Context, e model.HostEntry) error {
	host, err := k.lookAround(ctx, e)
	if err != nil {
		return fmt.Errorf("looking at this host's networks: %w", err)
	}
	if err := k.check(e, host, k.o.Store.HostEntries()); err != nil {
		return err
	}
	if err := k.o.Store.PutHostEntry(e); err != nil {
		return fmt.Errorf("storing %s: %w", e.Name, err)
	}
	err = k.o.Core.Sync(ctx, e.Bridge)
	if err == nil && e.File == "" {
		err = k.o.Core.PortError(e.ID())
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("making %s: %w", e.Name, err), k.remove(ctx, e))
	}
	k.o.Log.Info("host entry added", slog.String("name", e.Name), slog.String("bridge", e.Bridge), slog.String("address", e.Address.String()))
	return nil
}

// lookAround returns what was observed of the host, anew where it has bridge or
// address: a pass that removes an entry has still seen them.
func (k *Keeper) lookAround(ctx context.Context, e model.HostEntry) (model.Host, error) {
	host, err := k.o.Core.Host(ctx)
	if err == nil && has(host, e) {
		if err = k.o.Core.Sync(ctx); err == nil {
			host, err = k.o.Core.Host(ctx)
		}
	}
	return host, err
}

// has reports whether the host has bridge or address of the entry.
func has(host model.Host, e model.HostEntry) bool {
	return slices.Contains(host.Links, e.Bridge) || slices.Contains(host.Locals, e.Address)
}

// Remove removes an entry that was made by command.
func (k *Keeper) Remove(ctx context.Context, name string) error {
	k.changing.Lock()
	defer k.changing.Unlock()
	e, ok := k.entry(name)
	switch {
	case !ok:
		return fmt.Errorf("%w: %s", ErrUnknown, name)
	case e.File != "":
		return fmt.Errorf("%s is declared in %s: remove that file", name, e.File)
	case !k.o.Seen():
		return errSilent
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return k.remove(ctx, e)
}

// remove holds the address first, then forgets its flows, and then takes it
// away: what belongs to an old connection must find it held. If it fails it is
// held, and tried again.
func (k *Keeper) remove(ctx context.Context, e model.HostEntry) error {
	e.Leaving = true
	if err := k.o.Store.PutHostEntry(e); err != nil {
		return fmt.Errorf("storing that %s is to be removed: %w", e.Name, err)
	}
	if err := k.o.Core.Sync(ctx); err != nil {
		return fmt.Errorf("holding %s: %w", e.Name, err)
	}
	if _, err := k.o.Flush(ctx, []netip.Addr{e.Address}); err != nil {
		return fmt.Errorf("forgetting the connections of %s: %w", e.Name, err)
	}
	if err := errors.Join(k.o.Store.DeleteHostEntry(e.Name), k.o.Store.DeleteRebind(e.ID())); err != nil {
		return fmt.Errorf("forgetting %s: %w", e.Name, err)
	}
	if err := k.o.Core.Sync(ctx, e.Bridge); err != nil {
		return fmt.Errorf("removing the bridge of %s: %w", e.Name, err)
	}
	k.o.Log.Info("host entry removed", slog.String("name", e.Name))
	return nil
}

func (k *Keeper) entry(name string) (model.HostEntry, bool) {
	all := k.o.Store.HostEntries()
	i := slices.IndexFunc(all, func(e model.HostEntry) bool { return e.Name == name })
	if i < 0 {
		return model.HostEntry{}, false
	}
	return all[i], true
}

// settle checks what the entry says, and puts private addresses in the place of EIPs.
func (k *Keeper) settle(e *model.HostEntry, host model.Host) error {
	if err := e.Check(); err != nil {
		return err
	}
	eips := k.o.Core.EIPs()
	for i, p := range e.Publishes {
		ip := p.HostIP
		if private, ok := eips[ip]; ok && !slices.Contains(host.Locals, ip) {
			ip, e.Publishes[i].HostIP = private, private
		}
		if ip.IsValid() && !ip.IsUnspecified() && !ip.IsLoopback() && !slices.Contains(host.Locals, ip) {
			return fmt.Errorf("%v: %v is neither on this host nor a known EIP (--eip)", p, ip)
		}
	}
	return nil
}

// check refuses a name, bridge or address that somebody has, among these entries or elsewhere.
func (k *Keeper) check(e model.HostEntry, host model.Host, entries []model.HostEntry) error {
	for _, o := range entries {
		switch {
		case o.Name == e.Name:
		case o.Bridge == e.Bridge:
			return fmt.Errorf("%s has bridge %s: each has its own", o.Name, e.Bridge)
		case o.Address == e.Address:
			return fmt.Errorf("%s has address %v", o.Name, e.Address)
		}
	}
	for _, o := range k.o.Store.Endpoints() {
		if o.Container.Name == e.Name {
			return fmt.Errorf("the name %s is in use by another endpoint", e.Name)
		}
	}
	for _, n := range k.o.Store.Networks() {
		if n.Bridge == e.Bridge {
			return fmt.Errorf("bridge name %s is in use by %s", e.Bridge, n.Title())
		}
		if n.Subnet4.Contains(e.Address) {
			return fmt.Errorf("%v is in %v of %s", e.Address, n.Subnet4, n.Title())
		}
	}
	for _, b := range host.Bridges {
		for _, s := range b.Subnets {
			if s.Prefix.Contains(e.Address) {
				return fmt.Errorf("%v is in %v of Docker's bridge %s", e.Address, s.Prefix, b.Name)
			}
		}
	}
	for _, nic := range host.NICs {
		for _, p := range nic.Addrs {
			if p.Contains(e.Address) {
				return fmt.Errorf("%v is in %v of %s: want an address that nobody has, as 172.29.0.100", e.Address, p.Masked(), nic.Name)
			}
		}
	}
	switch {
	case slices.Contains(host.Links, e.Bridge):
		return fmt.Errorf("bridge name %s is in use by a link of this host", e.Bridge)
	case slices.Contains(host.Locals, e.Address):
		return fmt.Errorf("this host has %v already", e.Address)
	}
	return nil
}
