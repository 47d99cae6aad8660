// Package programs keeps the endpoints of programs (`eipnet exec`) as long as
// somebody holds them: each is held by the connection over which it was asked
// for, and goes when that ends, whatever ended it.
package programs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// Driver makes and removes endpoints of programs.
type Driver interface {
	Attach(ctx context.Context, p model.Program) (model.Attachment, error)
	Detach(ctx context.Context, id string) error
	Attached() []model.Endpoint
}

// Options are a Keeper's parts; all are required.
type Options struct {
	Log    *slog.Logger
	Driver Driver
	// LinkThere reports whether the host has the link. Where that of an
	// endpoint is gone, so is the program's namespace.
	LinkThere func(name string) bool
	// Grace is how long endpoints that an earlier daemon left wait for their holders.
	Grace time.Duration
}

// Keeper keeps endpoints of programs. Its methods may be called concurrently.
type Keeper struct {
	o     Options
	start time.Time

	mu      sync.Mutex
	held    map[string]int  // holders of each endpoint, by id
	orphans map[string]bool // endpoints that nobody holds and nobody is removing, by id
}

// New returns a Keeper. What is attached now was left by an earlier daemon.
func New(o Options) *Keeper {
	k := &Keeper{o: o, start: time.Now(), held: make(map[string]int), orphans: make(map[string]bool)}
	for _, e := range o.Driver.Attached() {
		k.orphans[e.ID] = true
	}
	return k
}

// detachTimeout bounds the removal of one endpoint.
const detachTimeout = 20 * time.Second

// ErrUnknown says that there is no such endpoint.
var ErrUnknown = errors.New("there is no such program")

// Attach makes an endpoint, held by the caller until [Keeper.Release].
func (k *Keeper) Attach(ctx context.Context, p model.Program) (model.Attachment, error) {
	a, err := k.o.Driver.Attach(ctx, p)
	if err == nil {
		k.mu.Lock()
		k.held[a.ID]++
		k.mu.Unlock()
	}
	return a, err
}

// Resume makes the caller hold an endpoint that is there: the daemon has been
// started anew since it was made. One that is being removed is not there.
func (k *Keeper) Resume(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[id] == 0 && !k.orphans[id] {
		return ErrUnknown
	}
	if !slices.ContainsFunc(k.o.Driver.Attached(), func(e model.Endpoint) bool { return e.ID == id }) {
		return ErrUnknown
	}
	k.held[id]++
	delete(k.orphans, id)
	return nil
}

// Release lets go of an endpoint; with its last holder it is removed. As the
// daemon ends (stopping is done) it stays for the next one, and may still be
// held by whoever asks before that is there.
func (k *Keeper) Release(stopping context.Context, id string) {
	k.mu.Lock()
	k.held[id]--
	last, stays := k.held[id] <= 0, stopping.Err() != nil
	if last {
		delete(k.held, id)
		if stays {
			k.orphans[id] = true
		}
	}
	k.mu.Unlock()
	if last && !stays {
		k.drop(stopping, id)
	}
}

// Remove removes an endpoint, whoever holds it. What is not there is removed already.
func (k *Keeper) Remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTimeout)
	defer cancel()
	if err := k.o.Driver.Detach(ctx, id); err != nil {
		return fmt.Errorf("detaching a program: %w", err)
	}
	return nil
}

// drop removes an endpoint that nobody holds, and nobody can take hold of any
// more; if it cannot be removed, it is an orphan, and Run tries again.
func (k *Keeper) drop(ctx context.Context, id string) {
	err := k.Remove(ctx, id)
	if err != nil {
		k.o.Log.Warn("a program's endpoint stays for now", slog.String("endpoint", model.ShortID(id)), slog.Any("err", err))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.orphans[id] = true
	}
}

// Run removes what nobody holds: at once where the namespace is gone, else when
// the grace is over. It ends with ctx.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(max(k.o.Grace/10, 100*time.Millisecond))
	defer tick.Stop()
	for {
		k.sweep(ctx, time.Since(k.start) > k.o.Grace)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (k *Keeper) sweep(ctx context.Context, late bool) {
	for _, e := range k.o.Driver.Attached() {
		gone := e.Phase != model.Joined || !k.o.LinkThere(e.Veth)
		k.mu.Lock()
		due := k.orphans[e.ID] && (late || gone) && ctx.Err() == nil
		if due {
			delete(k.orphans, e.ID)
		}
		k.mu.Unlock()
		if due {
			k.drop(ctx, e.ID)
		}
	}
}
