package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

const (
	// An API that is silent for longer than identifyTimeout is still starting;
	// listTimeout leaves room for thousands of containers on a busy host.
	identifyTimeout = 2 * time.Second
	listTimeout     = 15 * time.Second
	lookupTimeout   = time.Second
	imagesTimeout   = 5 * time.Second // of a list; the next one asks for the others
	optionsTimeout  = 5 * time.Second // of the first list

	backoffFirst = 100 * time.Millisecond
	backoffLast  = 2 * time.Second

	// listInterval is the least time between two lists' beginnings, listSweep
	// the most: Docker drops events when a subscriber is slow.
	listInterval = 50 * time.Millisecond
	listSweep    = time.Minute
)

// Options says what to watch.
type Options struct {
	Log  *slog.Logger
	Host string // "unix:///var/run/docker.sock"
	Poke func() // called after each full list and when Docker goes away; must not block
	// Urgent is called where only milliseconds are left: a container that may be
	// pinned has joined a stock network, and the view has it. Nil: Poke. It must
	// not block, and several goroutines may call it at once.
	Urgent func()
	// Asked reports whether somebody asked for something for the container (by
	// its id) elsewhere than in its labels: it is as urgent as if it bore some. Nil: nobody.
	Asked func(containerID string) bool
}

// Watcher follows one Docker engine, and the one that replaces it.
type Watcher struct {
	log    *slog.Logger
	host   string
	poke   func()
	urgent func()
	asked  func(containerID string) bool
	dial   func(host string) (engine, error)
	cache  *cache
	images images
	// options outlives connections, as endpoints do.
	options *driverOptions

	untrusted map[string]error // containers that were logged as such; of the lister alone

	mu             sync.Mutex
	engine         engine                 // nil while not up
	soon           func(networkID string) // asks soon about a network; nil while there is no session, as is:
	again          func()                 // has a list made soon
	up             bool
	view           *View
	failure        error // of the last attempt
	engineProblems []model.Problem
	owed           map[string]bool // networks where a Join was not told its labels
}

// New makes a Watcher; nothing is asked before Run.
func New(o Options) *Watcher {
	w := &Watcher{log: o.Log, host: o.Host, poke: o.Poke, urgent: o.Urgent, asked: o.Asked, dial: dial, cache: newCache(), options: newDriverOptions()}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if w.poke == nil {
		w.poke = func() {}
	}
	if w.asked == nil {
		w.asked = func(string) bool { return false }
	}
	if w.urgent == nil {
		w.urgent = w.poke
	}
	return w
}

// Up reports whether the event stream is connected and a full list was made since.
func (w *Watcher) Up() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up
}

// View returns what is known, nil before the first full list. While Docker is away it
// grows old: see Up.
func (w *Watcher) View() *View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

// Refresh asks for a full list soon, though no event says so. It does not wait.
func (w *Watcher) Refresh() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.again != nil {
		w.again()
	}
}

func (w *Watcher) connected() engine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.engine
}

// Run follows Docker until ctx ends, which is no error. It goes on through
// everything that may end by itself; only a host that is no unix socket is an error.
func (w *Watcher) Run(ctx context.Context) error {
	if !strings.HasPrefix(w.host, "unix://") {
		return fmt.Errorf("following docker at %q: want unix:///path/to/docker.sock, as a remote docker's networks are out of reach", w.host)
	}
	wait := backoffFirst
	for {
		wasUp, err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.away(wasUp, err)
		if wasUp {
			wait = backoffFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, backoffLast)
	}
}

// away records that a connection ended, and logs it unless it failed the same way before.
func (w *Watcher) away(wasUp bool, err error) {
	w.mu.Lock()
	news := wasUp || w.failure == nil || w.failure.Error() != err.Error()
	w.failure = err
	w.mu.Unlock()
	if news {
		w.log.Warn("docker away", slog.String("host", w.host), slog.Any("err", err))
		w.poke()
	}
}

// session is one connection to Docker.
type session struct {
	*Watcher
	eng     engine
	version string
	dirty   chan struct{} // something changed since the last list was begun
	fast    fastPath

	inspecting chan struct{}   // questions about single containers at once
	running    map[string]bool // containers, as the last list has it; of the lister alone

	tries map[string]int // lists in a row that could not read a container's image; of the lister alone
}

// follow connects, subscribes, lists, and then lists again whenever an event
// says so, until something fails. It reports whether it came as far as a list.
func (w *Watcher) follow(ctx context.Context) (bool, error) {
	eng, err := w.dial(w.host)
	if err != nil {
		return false, err
	}
	defer func() {
		if err := eng.close(); err != nil {
			w.log.Debug("closing the docker client failed", slog.Any("err", err))
		}
	}()
	id, err := w.identify(ctx, eng)
	if err != nil {
		return false, err
	}
	s := &session{
		Watcher: w, eng: eng, version: id.version, dirty: make(chan struct{}, 1), fast: newFastPath(),
		inspecting: make(chan struct{}, inspections),
	}
	s.mark()
	w.cache.distrust()

	ctx, cancel := context.WithCancelCause(ctx)
	w.mu.Lock()
	w.soon, w.again = func(networkID string) { s.hurry(ctx, networkID, "") }, s.mark
	w.mu.Unlock()
	var lister sync.WaitGroup
	silence := time.AfterFunc(identifyTimeout, func() { cancel(errors.New("no answer from /events")) })
	err = eng.events(ctx, time.Now(), func() {
		silence.Stop()
		lister.Go(func() { cancel(s.relist(ctx)) })
	}, func(e event) { s.handle(ctx, e) })
	silence.Stop()
	if cause := context.Cause(ctx); cause != nil {
		err = cause // why the stream was given up, rather than that it was
	}
	cancel(err)
	lister.Wait()
	w.mu.Lock()
	w.soon, w.again = nil, nil
	w.mu.Unlock()
	s.fast.workers.Wait()

	w.mu.Lock()
	defer w.mu.Unlock()
	wasUp := w.up
	w.engine, w.up = nil, false
	return wasUp, err
}

func (w *Watcher) identify(ctx context.Context, eng engine) (identity, error) {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	id, err := eng.identify(ctx)
	if err != nil {
		return identity{}, err
	}
	problems := judge(id, w.host)
	w.mu.Lock()
	w.engineProblems = problems
	w.mu.Unlock()
	if i := slices.IndexFunc(problems, unsupported); i >= 0 {
		return identity{}, errors.New(problems[i].Text)
	}
	return id, nil
}

// relist makes a list whenever the session is dirty, and now and then.
func (s *session) relist(ctx context.Context) error {
	sweep := time.NewTicker(listSweep)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.dirty:
		case <-sweep.C:
		}
		begun := s.fast.tick()
		view, err := s.list(ctx)
		if err != nil {
			return err
		}
		s.askOptions(ctx, view)
		s.publish(view, begun)
		// On a host where a list takes long, lists take half of the time at most.
		took := time.Since(view.At)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(listInterval-took, took)):
		}
	}
}

// publish takes over a full list, except for what was asked since it was begun.
func (s *session) publish(v *View, begun uint64) {
	s.fast.merge.Lock()
	for id, p := range s.fast.patches {
		if p.begun > begun {
			p.apply(v)
		} else {
			delete(s.fast.patches, id)
		}
	}
	s.options.fill(v, true)
	s.fast.listed = begun
	s.mu.Lock()
	first := !s.up
	s.view, s.up, s.engine, s.failure = v, true, s.eng, nil
	clear(s.owed)
	s.mu.Unlock()
	s.fast.merge.Unlock()
	if first {
		s.log.Info("docker followed", slog.String("host", s.host), slog.String("version", s.version),
			slog.Int("networks", len(v.Networks)), slog.Int("endpoints", len(v.Containers)))
	}
	s.poke()
}

func (s *session) mark() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// handle takes over one event. It never waits: Docker drops a slow subscriber's events.
func (s *session) handle(ctx context.Context, e event) {
	switch e.kind {
	case "container":
		if !slices.Contains(eventActions, e.action) {
			return
		}
		if overflow := s.cache.see(e); overflow || e.action != "create" {
			s.mark()
		} else if l, ok := s.cache.id(e.id); ok && len(l.labels) > 0 {
			s.hurry(ctx, "", e.id) // its image, before it is started
		}
	case "network":
		switch {
		case e.action == "connect" && s.urges(e):
			s.hurry(ctx, e.id, e.attributes["container"])
		case e.action == "create" && e.attributes["type"] == stockDriver:
			s.hurry(ctx, e.id, "") // it may be strict, and has no containers yet
		}
		s.mark()
	}
}
