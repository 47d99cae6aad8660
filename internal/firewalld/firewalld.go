// Package firewalld tells firewalld of bridges, as Docker does of its own: what
// is forwarded between interfaces of which firewalld has not been told it
// refuses, whatever anybody else accepts.
//
// A bridge goes into the zone "docker", which Docker makes where it meets
// firewalld, else into "trusted", which firewalld brings along: both accept. It
// goes there until firewalld is reloaded, and again then; nothing is written to
// firewalld's configuration. A bridge that somebody has put into a zone stays there.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// Socket is D-Bus' system socket, below the host's root.
const Socket = "run/dbus/system_bus_socket"

const (
	dockerZone  = "docker"
	trustedZone = "trusted"

	// lookAgain is after how long a bus that was not there is looked for again.
	lookAgain = 30 * time.Second
	// retry follows a failure: while firewalld starts it has its name and no zones.
	retry = time.Second
	// patience bounds one question. A reload takes seconds, and firewalld answers after it.
	patience = 20 * time.Second
)

// zones is firewalld.
type zones interface {
	// running reports whether there is one.
	running(ctx context.Context) (bool, error)
	names(ctx context.Context) ([]string, error)
	// zoneOf is the zone of an interface, empty: none; configured is that after a reload.
	zoneOf(ctx context.Context, iface string) (string, error)
	configured(ctx context.Context, iface string) (string, error)
	add(ctx context.Context, zone, iface string) error
	remove(ctx context.Context, zone, iface string) error
	// changes gets something whenever firewalld may have forgotten, and is
	// closed when the bus is gone.
	changes() <-chan struct{}
	close()
}

// Options are a Keeper's settings.
type Options struct {
	Log    *slog.Logger // nil: silent
	Socket string       // the path of [Socket]
	// Filters reports whether firewalld filters what is forwarded, where D-Bus
	// cannot be asked whether it runs. Nil: it does not.
	Filters func() bool
	// Poke is called when Problems changed; it must not block. Nil: nobody.
	Poke func()
}

// Keeper keeps bridges in firewalld's zones. Where there is no firewalld, it
// waits for one.
type Keeper struct {
	o       Options
	connect func(ctx context.Context) (zones, error) // nil zones: there is no bus
	changed chan struct{}
	had     map[string]bool // bridges that were wanted at some time and may be in a zone; of Run alone

	mu     sync.Mutex
	want   []string
	failed error
}

// New returns a Keeper; nothing is asked before Run.
func New(o Options) *Keeper {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Poke == nil {
		o.Poke = func() {}
	}
	if o.Filters == nil {
		o.Filters = func() bool { return false }
	}
	return &Keeper{
		o: o, changed: make(chan struct{}, 1), had: make(map[string]bool),
		connect: func(ctx context.Context) (zones, error) { return connect(ctx, o.Socket) },
	}
}

// Set says which bridges firewalld has to know of. It does not wait.
func (k *Keeper) Set(bridges []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Equal(k.want, bridges) {
		return
	}
	k.want = slices.Clone(bridges)
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Problems tells why firewalld does not know of the bridges.
func (k *Keeper) Problems() []model.Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed == nil || len(k.want) == 0 {
		return nil
	}
	return []model.Problem{{
		Code: model.CodeFirewalld, Severity: model.Failure, Subject: "host",
		Text: "firewalld was not told of eipnet's bridges, and refuses what their containers begin: " + k.failed.Error(),
		Fix:  "see that firewalld and D-Bus work, or firewall-cmd --zone=" + trustedZone + " --add-interface=BRIDGE",
	}}
}

// Run keeps them until ctx ends, and returns nil then. What is in a zone stays.
func (k *Keeper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := lookAgain
		z, err := k.connect(ctx)
		if z != nil {
			k.session(ctx, z)
			z.close()
			wait = retry
		} else {
			if err != nil && !k.o.Filters() {
				err = nil // as in a container that may not use D-Bus, on a host without firewalld
			}
			k.report(ctx, err)
		}
		k.await(ctx, nil, wait)
	}
	return nil
}

// session keeps them as long as the bus is there.
func (k *Keeper) session(ctx context.Context, z zones) {
	for more := true; more; {
		wait := lookAgain
		err := k.apply(ctx, z)
		if err != nil {
			wait = retry
		}
		k.report(ctx, err)
		more = k.await(ctx, z.changes(), wait)
	}
}

// await waits for a reason to look again, and reports whether there can be more.
func (k *Keeper) await(ctx context.Context, changes <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case _, open := <-changes:
		return open
	case <-k.changed:
	case <-timer.C:
	}
	return true
}

// report remembers what went wrong, if ctx has not ended.
func (k *Keeper) report(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	news := (err == nil) != (k.failed == nil) || err != nil && err.Error() != k.failed.Error()
	k.failed = err
	k.mu.Unlock()
	if news {
		k.o.Poke()
	}
}

// apply puts bridges that are in no zone into one, and takes those out that are gone.
func (k *Keeper) apply(ctx context.Context, z zones) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	k.mu.Lock()
	want := k.want
	k.mu.Unlock()
	if len(want)+len(k.had) == 0 {
		return nil
	}
	if up, err := z.running(ctx); err != nil || !up {
		return err
	}
	var errs []error
	for _, bridge := range want {
		k.had[bridge] = true
		errs = append(errs, k.place(ctx, z, bridge))
	}
	for bridge := range maps.Clone(k.had) {
		if slices.Contains(want, bridge) {
			continue
		}
		if err := takeOut(ctx, z, bridge); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(k.had, bridge)
	}
	return errors.Join(errs...)
}

func (k *Keeper) place(ctx context.Context, z zones, bridge string) error {
	zone, err := z.zoneOf(ctx, bridge)
	if err != nil {
		return fmt.Errorf("asking for the zone of %s: %w", bridge, err)
	}
	if zone != "" {
		return nil
	}
	all, err := z.names(ctx)
	if err != nil {
		return fmt.Errorf("asking for the zones: %w", err)
	}
	zone = trustedZone
	if slices.Contains(all, dockerZone) {
		zone = dockerZone
	}
	if err := z.add(ctx, zone, bridge); err != nil {
		return fmt.Errorf("putting %s into zone %s: %w", bridge, zone, err)
	}
	k.o.Log.Info("told firewalld of a bridge", slog.String("bridge", bridge), slog.String("zone", zone))
	return nil
}

// takeOut takes a bridge out of the zone where it would not be after a reload.
func takeOut(ctx context.Context, z zones, bridge string) error {
	zone, err := z.zoneOf(ctx, bridge)
	if err != nil {
		return fmt.Errorf("asking for the zone of %s: %w", bridge, err)
	}
	if zone != dockerZone && zone != trustedZone {
		return nil
	}
	switch kept, err := z.configured(ctx, bridge); {
	case err != nil:
		return fmt.Errorf("asking for the configured zone of %s: %w", bridge, err)
	case kept != "":
		return nil
	}
	if err := z.remove(ctx, zone, bridge); err != nil {
		return fmt.Errorf("taking %s out of zone %s: %w", bridge, zone, err)
	}
	return nil
}

// Forget takes bridges out of the zones into which a Keeper has put them. Where
// there is no firewalld, there is nothing to do.
func Forget(ctx context.Context, socket string, bridges []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	z, err := connect(ctx, socket)
	if z == nil {
		return err
	}
	defer z.close()
	if up, err := z.running(ctx); err != nil || !up {
		return err
	}
	var errs []error
	for _, bridge := range bridges {
		errs = append(errs, takeOut(ctx, z, bridge))
	}
	return errors.Join(errs...)
}
