// Package reconcile keeps the host as it was asked to be: it looks at
// everything, lets plan decide, and has the appliers make the kernel so.
//
// One goroutine (Loop.Run) does all of it. Sources of change (driver, Docker
// events, netlink, timers) carry no data that the loop relies on: they poke,
// and the pass reads again. A pass that finds nothing to change writes nothing.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// Host observes the host and applies links and sysctls.
type Host interface {
	Observe(ctx context.Context, managed []string) (model.Host, error)
	Apply(ctx context.Context, links plan.Links, sysctls []plan.Sysctl, prune bool) (changed bool, err error)
	FlushConntrackPorts(ctx context.Context, dst []netip.AddrPort) (int, error)
	// Peers tells the MAC address behind each port of the bridges.
	Peers(ctx context.Context, bridges []string) (map[string]string, error)
	// Cgroups finds the cgroups of containers on the host's network, by container id.
	Cgroups(strays []model.Stray) map[string]model.Cgroup
	FlushConntrack(ctx context.Context, addrs []netip.Addr) (int, error)
	// FlushTranslated forgets the connections for which stale is true: it is
	// asked about each with the source address that the other side sees (as).
	FlushTranslated(ctx context.Context, stale func(from, to, as netip.Addr) bool) (int, error)
}

// Router applies ip rules and routes.
type Router interface {
	Apply(ctx context.Context, r plan.Routing, prune bool) (changed bool, err error)
	// NICIDs tells the NICs' ids as the kernel's tables have them now.
	NICIDs() (map[string]model.NICID, error)
}

// Firewall applies marks, NAT and guard.
type Firewall interface {
	Apply(ctx context.Context, fw plan.Firewall, prune bool) (changed bool, err error)
	// ClaimBridge comes before Apply and ApplyBridge behind it: what an address
	// may do is settled before another port may bear it.
	ClaimBridge(ctx context.Context, ports []plan.BridgePort) (changed bool, err error)
	ApplyBridge(ctx context.Context, ports []plan.BridgePort, prune bool) (changed bool, err error)
	// Pinned tells the addresses that are pinned in the kernel now.
	Pinned() ([]netip.Addr, error)
	// Claimed tells the addresses that table bridge keeps for somebody now.
	Claimed() ([]netip.Addr, error)
}

// Forwarding lets our bridges' traffic pass Docker's FORWARD policy.
type Forwarding interface {
	Apply(ctx context.Context, bridges []string) (ForwardingOutcome, error)
}

// ForwardingOutcome says what became of it. Absent: Docker has not made its chain yet.
type ForwardingOutcome struct{ Changed, Absent bool }

// Ports reserves host ports. Set returns why a reservation could not be had, and
// ends proxies that are not wanted any more; Serve begins those that are, when
// their answers find their way.
type Ports interface {
	Set(want []plan.Port) map[plan.Port]error
	Serve() error
}

// Store is what is persisted, as far as a pass needs it.
type Store interface {
	Networks() []model.Network
	PutNetwork(n model.Network) error
	DeleteNetwork(id string) error
	Endpoints() []model.Endpoint
	HostEntries() []model.HostEntry
	NICIDs() map[string]model.NICID
	SetNICIDs(ids map[string]model.NICID) error
	UpdateEndpoint(id string, fn func(*model.Endpoint)) error
	Rebinds() []model.Rebind
	PutRebind(r model.Rebind) error
	DeleteRebind(containerID string) error
}

// Health tells how well the NICs to be watched work.
type Health interface {
	Look(ctx context.Context, host model.Host, ids map[string]model.NICID, watch []string) map[string]model.Health
}

// Docker tells what Docker's API last said; ok is false before it said anything.
type Docker interface {
	View() (view DockerView, ok bool)
	Problems() []model.Problem
}

// DockerView is what Docker's API said, as far as a pass needs it. It is shared
// and not to be changed.
type DockerView struct {
	Containers map[string]model.Container // by endpoint id
	Stock      []model.Network            // networks of Docker's bridge driver
	Endpoints  []model.Endpoint           // on those
	Strays     []model.Stray
	Beside     []model.Beside
	// Incomplete: Docker knows networks or endpoints of ours that we do not (our
	// state was lost, or a part of it). Nothing is taken away then.
	Incomplete bool
}

// Options are a Loop's parts and settings. All parts are required.
type Options struct {
	Log        *slog.Logger
	Settings   plan.Settings
	Host       Host
	Router     Router
	Firewall   Firewall
	Forwarding Forwarding
	Ports      Ports
	Health     Health
	Store      Store
	Docker     Docker
	// Stay: a container that has failed over stays where it is until that NIC
	// fails, or it is rebound (--failback never).
	Stay bool
	// DeviceErrors mark errors of the Router about a route whose device is
	// missing or down.
	DeviceErrors []error
	// StateLost: the store has been begun anew at this start, or lacks records.
	StateLost bool
	// Culprit names the process that was last seen to undo something of ours;
	// empty where the kernel did not tell.
	Culprit func() string
}

// MinInterval separates passes that nobody waits for, RetryInterval follows a
// failed one, MaxInterval is the sweep that finds what no event told.
const (
	MinInterval   = 50 * time.Millisecond
	RetryInterval = time.Second
	MaxInterval   = 30 * time.Second
)

// DockerPatience is for how long after the start it is no news that Docker has
// not answered: eipnet starts before Docker, or has just begun to ask.
const DockerPatience = 5 * time.Second

// Loop is the reconciler. Run it once; Poke and Sync from anywhere.
type Loop struct {
	o       Options
	poke    chan struct{}
	syncs   chan waiter
	first   chan struct{} // closed after the first pass
	stopped chan struct{} // closed when Run returns
	last    atomic.Pointer[Result]

	forwards     map[plan.Forward]bool // UDP forwards of the pass before
	sources      map[netip.Addr]plan.Source
	except       map[netip.Addr][]netip.Prefix // of each source
	stay         map[string]plan.Stay
	pinned       map[string]bool // endpoints whose connections may bear a NIC's address
	ports        ports
	held         map[netip.Addr]plan.Source // what endpoints that are held now left with before
	accepts      accepting
	undone       atomic.Bool         // somebody changed the firewall's tables
	undoneBefore bool                // somebody had, when the pass before looked
	inherited    map[netip.Addr]bool // what an earlier process had pinned (true) or looked after; nil: its flows are looked at
	lost         map[string]bool     // endpoints that were pinned when the state was lost, and of which that is not remembered yet
	forgot       bool                // something was pinned when the state was lost
	ids          *steadyIDs          // what Options.Store is behind
	onHost       bool                // something was decided about a container on the host's network since the start
	stale        bool                // flows may have begun by another way: flushStale has to look
	rival        rivalry
	problems     map[model.Problem]bool // that are logged
	patience     time.Time              // when Docker's silence becomes news

	rebinding sync.Mutex // one Rebind at a time
}

// New returns a Loop, or an error where a part is missing.
func New(o Options) (*Loop, error) {
	if o.Log == nil || o.Host == nil || o.Router == nil || o.Firewall == nil || o.Forwarding == nil || o.Ports == nil || o.Health == nil || o.Store == nil || o.Docker == nil || o.Culprit == nil {
		return nil, errors.New("creating the reconciler: a part is missing")
	}
	if err := o.Settings.Mask.Validate(); err != nil {
		return nil, err
	}
	ids := &steadyIDs{Store: o.Store}
	o.Store = ids
	return &Loop{
		o:        o,
		ids:      ids,
		poke:     make(chan struct{}, 1),
		syncs:    make(chan waiter, 64),
		first:    make(chan struct{}),
		stopped:  make(chan struct{}),
		problems: make(map[model.Problem]bool),
		ports:    make(ports),
	}, nil
}

// Poke asks for a pass some time soon. It never blocks.
func (l *Loop) Poke() {
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// PokeForwarding asks for a pass that looks after the accepts in Docker's
// chain, too. It never blocks.
func (l *Loop) PokeForwarding() {
	l.accepts.reason.Store(true)
	l.Poke()
}

// PokeTables asks for a pass after somebody changed the firewall's tables: what
// began while they were gone is looked at, too. It never blocks.
func (l *Loop) PokeTables() {
	l.undone.Store(true)
	l.Poke()
}

// Hurry asks for a pass now. It never blocks.
func (l *Loop) Hurry() {
	select {
	case l.syncs <- waiter{done: make(chan error, 1)}:
	default:
		l.Poke()
	}
}

// waiter is somebody who waits for a pass, and the bridges that matter to them.
type waiter struct {
	subjects []string
	done     chan error
}

// ErrStopped says that the loop has ended, as the daemon is shutting down.
var ErrStopped = errors.New("eipnet is shutting down")

// Sync runs a pass that begins after the call. It returns an error where the
// pass as a whole cannot be relied on, or where something failed that is about
// one of the subjects (names of bridges). Callers that ask at the same time share one pass.
func (l *Loop) Sync(ctx context.Context, subjects ...string) error {
	w := waiter{subjects, make(chan error, 1)}
	select {
	case l.syncs <- w:
	case <-l.stopped:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("waiting for the reconciler: %w", ctx.Err())
	}
	select {
	case err := <-w.done:
		return err
	case <-l.stopped:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("waiting for the reconciler: %w", ctx.Err())
	}
}

// Last returns the result of the last pass, waiting for the first one.
func (l *Loop) Last(ctx context.Context) (*Result, error) {
	select {
	case <-l.first:
		return l.last.Load(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the first pass: %w", ctx.Err())
	}
}

// Run passes until ctx ends: at once, when poked (but not more often than the
// minimum interval), at once when somebody waits in Sync, after the retry
// interval when anything failed, and at the latest after the maximum interval.
func (l *Loop) Run(ctx context.Context) error {
	defer close(l.stopped)
	l.inherit()
	l.patience = time.Now().Add(DockerPatience)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var earliest time.Time // of a pass that nobody waits for
	poked := false
	for {
		var waiting []waiter
		select {
		case <-ctx.Done():
			return nil
		case w := <-l.syncs:
			waiting = append(waiting, w)
		case <-l.poke:
			if now := time.Now(); now.Before(earliest) {
				if !poked {
					poked = true
					timer.Reset(earliest.Sub(now))
				}
				continue
			}
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil
		}
		waiting = l.drain(waiting)
		// A pass that has begun is finished: half of one helps nobody.
		whole, before := context.WithoutCancel(ctx), l.last.Load()
		res := l.pass(whole)
		res.Took = time.Since(res.At)
		early, complete := *res, *res
		if before != nil {
			early.Problems = before.Problems // as long as not all of them are known
		}
		l.publish(&early)
		for _, w := range waiting {
			w.done <- res.errorFor(w.subjects)
		}
		complete.Problems, complete.Partial = slices.Clone(res.Problems), slices.Clone(res.Partial)
		l.after(whole, &complete, before)
		l.publish(&complete)
		poked = false
		earliest = time.Now().Add(l.rival.pause())
		timer.Reset(l.idle(&complete))
	}
}

// inherit remembers what an earlier process has left in the kernel: what is
// pinned, and the NICs' ids.
func (l *Loop) inherit() {
	pinned, err := l.o.Firewall.Pinned()
	if err != nil {
		l.o.Log.Warn("what was pinned before is not known", slog.Any("err", err))
	}
	claimed, err := l.o.Firewall.Claimed()
	if err != nil {
		l.o.Log.Warn("whose addresses were looked after before is not known", slog.Any("err", err))
	}
	l.inherited = make(map[netip.Addr]bool)
	for _, a := range claimed {
		l.inherited[a] = false
	}
	for _, a := range pinned {
		l.inherited[a] = true
	}
	l.forgot = l.o.StateLost && len(pinned) > 0
	ids, err := l.o.Router.NICIDs()
	if err != nil {
		l.o.Log.Warn("which table was which NIC's is not known", slog.Any("err", err))
	}
	l.ids.inherit(ids)
}

// idle is how long the loop waits for a poke before it passes all the same.
func (l *Loop) idle(res *Result) time.Duration {
	wait := MaxInterval
	if l.rival.problem != nil {
		wait = min(wait, RivalWindow)
	}
	if until := time.Until(l.patience); until > 0 {
		wait = min(wait, until)
	}
	if res.Err != nil || len(res.Partial)+len(res.PortErrors) > 0 {
		wait = RetryInterval
	}
	return wait
}

// publish makes a result the last one. It is not changed any more.
func (l *Loop) publish(res *Result) {
	l.last.Store(res)
	select {
	case <-l.first:
	default:
		close(l.first)
	}
}

// drain collects all who ask for a pass that has not begun.
func (l *Loop) drain(waiting []waiter) []waiter {
	for {
		select {
		case w := <-l.syncs:
			waiting = append(waiting, w)
		default:
			return waiting
		}
	}
}
