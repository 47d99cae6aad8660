// Package driver is eipnet's libnetwork remote driver: what Docker calls when a
// network of ours is made, and when a container is put on it.
//
// A handler states the intent in the store, has the core run a pass for it, and
// answers. Three rules come from what Docker does with the answers:
//
//   - While dockerd boots, its event stream is down ([Labels].Up is false), and
//     an error would leave the container exited for good: then nothing
//     transient is an error, the endpoint is only held until it can be decided.
//   - Teardown calls may come twice, late, for unknown ids or not at all: each
//     of them does what the missing ones should have done, and answers success.
//   - A hung handler hangs the container: every one has a deadline and answers.
package driver

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// Time limits. Docker itself sets none (a hung handler hangs docker start and
// docker stop of that container), so what counts is how long a person waits.
const (
	answerTimeout = 10 * time.Second       // every call is answered within it
	workTimeout   = 7 * time.Second        // what a call may take before it is given up …
	undoTimeout   = 2 * time.Second        // … and what taking it back may take on top
	labelTimeout  = 200 * time.Millisecond // Docker's API answers in 1–5 ms or, at boot, not at all
	readTimeout   = 5 * time.Second        // headers and body of one call
)

// Options are the parts that a Driver works with. All but Log are required.
type Options struct {
	Log    *slog.Logger // nil: logs nothing
	Store  Store
	Core   Core
	Links  Links
	Labels Labels
	// Programs is the subnet of programs; zero: one that is free.
	Programs netip.Prefix
}

// Store keeps what Docker asked for. Deleting what is not there is success.
// Values go in and out as copies.
type Store interface {
	Networks() []model.Network
	Network(id string) (model.Network, bool)
	PutNetwork(model.Network) error
	DeleteNetwork(id string) error

	Endpoints() []model.Endpoint
	Endpoint(id string) (model.Endpoint, bool)
	PutEndpoint(model.Endpoint) error
	// UpdateEndpoint changes an endpoint with no other writer in between: a
	// pass may learn its container at any time. An absent one is success, and
	// fn is not called.
	UpdateEndpoint(id string, fn func(*model.Endpoint)) error
	DeleteEndpoint(id string) error

	// HostEntries are addresses of the host's own programs, which no network may have.
	HostEntries() []model.HostEntry

	// Rebind is what `eipnet rebind` said of a container.
	Rebind(containerID string) (model.Rebind, bool)

	// NICKnown reports whether a NIC of that name was ever seen on this host.
	NICKnown(name string) bool
}

// Core makes the kernel what the store says.
type Core interface {
	// Sync runs a pass that begins after the call and waits for its end. It is
	// an error if the pass failed as a whole, or in what is about one of the
	// subjects: bridges by name.
	Sync(ctx context.Context, subjects ...string) error

	// Host is what was last observed of the host.
	Host(ctx context.Context) (model.Host, error)

	// PortError says why published ports of the endpoint could not be reserved
	// in the last pass. Nil: all are, or the endpoint's pin is not decided yet.
	PortError(endpointID string) error

	// EIPs maps public addresses to private ones.
	EIPs() map[netip.Addr]netip.Addr
}

// Veth is the pair of interfaces that connects a container to its bridge.
type Veth struct {
	Host   string // stays on the host, port of Bridge
	Peer   string // moved into the container by dockerd
	Bridge string
	MAC    string // of Peer
	Alias  string
	MTU    int // 0: the kernel's default
}

// Links makes and removes what belongs to one endpoint alone.
type Links interface {
	// AddVeth makes the pair and sets its host side up. A pair that is there
	// already is success.
	AddVeth(ctx context.Context, v Veth) error

	// DeleteLink deletes a link. One that is not there is success.
	DeleteLink(ctx context.Context, name string) error

	// FlushConntrack forgets all connections from or to the addresses and
	// returns how many there were.
	FlushConntrack(ctx context.Context, addrs []netip.Addr) (int, error)
}

// Labels asks Docker about containers.
type Labels interface {
	// Up reports whether Docker's event stream is connected. It is not while
	// dockerd boots, and then its API accepts requests without answering them.
	Up() bool

	// Container finds the container of an endpoint that is being joined. It
	// returns when ctx ends at the latest, with an error if it cannot tell now.
	Container(ctx context.Context, networkID, endpointID string) (model.Container, error)
}

// Driver answers Docker's calls. All methods may be used concurrently.
type Driver struct {
	log    *slog.Logger
	store  Store
	core   Core
	links  Links
	labels Labels

	programs netip.Prefix

	locks  keyLocks   // "network …" before "endpoint …"
	create sync.Mutex // choosing bridges and subnets, from check to PutNetwork
	ports  sync.Mutex // choosing host ports, from Pick to PutEndpoint

	dynamic map[where]uint16 // under ports: the last one that was chosen for port 0

	// resolved remembers the selectors that named a NIC of this host once: when
	// that NIC is gone its containers are held, not refused.
	resolved sync.Map // model.Selector → struct{}
}

// New returns a Driver. It panics when a required part is missing, as that is a
// mistake in the wiring and not in anything that a person wrote.
func New(o Options) *Driver {
	if o.Store == nil || o.Core == nil || o.Links == nil || o.Labels == nil {
		panic("driver: Store, Core, Links and Labels are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		log: o.Log, store: o.Store, core: o.Core, links: o.Links, labels: o.Labels,
		programs: o.Programs, dynamic: make(map[where]uint16),
	}
}

// undo returns a context for taking back what a call did, which has to work
// when that call's own time is over.
func undo(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}

// keyLocks serialises the calls that are about the same network or endpoint.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	sem  chan struct{}
	refs int // holder and waiters
}

// lock waits for the key, at most until ctx ends. The returned function
// releases it.
func (l *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*keyLock)
	}
	k := l.held[key]
	if k == nil {
		k = &keyLock{sem: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.refs++
	l.mu.Unlock()

	drop := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.refs--; k.refs == 0 {
			delete(l.held, key)
		}
	}
	select {
	case k.sem <- struct{}{}:
		return func() { <-k.sem; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, context.Cause(ctx)
	}
}
