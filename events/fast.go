package events

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// maxAsked is how many containers are asked for by id in one question.
const maxAsked = 64

// fastPath asks about single networks without waiting for a full list.
//
// Lists and single questions run side by side. Both are numbered as they begin,
// and what was begun later stays: a network that was asked about since a list
// was begun keeps its endpoints when the list is published. As every event
// makes a list follow, that holds for one list at most.
type fastPath struct {
	workers sync.WaitGroup
	slots   chan struct{} // questions at once

	mu     sync.Mutex
	wanted map[string][]string // network → containers that joined it; there while a worker is at it
	clock  uint64

	merge   sync.Mutex // of views; held while one is replaced
	patches map[string]patch
	listed  uint64 // when the published list was begun, 0 before the first
}

func newFastPath() fastPath {
	return fastPath{slots: make(chan struct{}, inspections), wanted: make(map[string][]string), patches: make(map[string]patch)}
}

// tick numbers a question that is about to begin.
func (f *fastPath) tick() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock++
	return f.clock
}

// urges reports whether a connect event cannot wait for the full list. Where
// neither network nor container bear eip.* labels, and nobody asked otherwise, it can. A network that is too
// new to be known may bear some; a driver network can wait, unless the container
// was to be told at Join and could not.
func (s *session) urges(e event) bool {
	s.mu.Lock()
	var n Network
	known := false
	if s.view != nil {
		n, known = s.view.Networks[e.id]
	}
	owed := s.owed[e.id]
	delete(s.owed, e.id)
	s.mu.Unlock()
	switch {
	case owed:
		return true
	case !known:
		return e.attributes["type"] == stockDriver
	case !n.stock():
		return false
	}
	c, _ := s.cache.id(e.attributes["container"])
	return len(n.Labels) > 0 || len(c.labels) > 0 || s.asked(e.attributes["container"])
}

// owe remembers that a Join was not told what it asked for.
func (w *Watcher) owe(networkID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owed == nil {
		w.owed = make(map[string]bool)
	}
	w.owed[networkID] = true
}

// PortUp says that a bridge port has got carrier: a container is about to be
// started on that bridge. It does not wait, and several goroutines may call it.
// Docker lists the endpoint by then, and tells of it 10 ms later, just before
// the container's first instruction (20.10: 200 ms).
func (w *Watcher) PortUp(bridge string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.soon == nil || w.view == nil {
		return
	}
	for id, n := range w.view.Networks {
		if n.Bridge == bridge && (len(n.Labels) > 0 || w.cache.labelled()) {
			w.log.Debug("a port came up", slog.String("bridge", bridge))
			w.soon(id)
		}
	}
}

// hurry asks soon about a network that a container joined, about a network
// alone that is new or has a new port, or, without a network, about the container alone. It does not wait. What comes while a
// network is being asked about is put together into one more question.
func (s *session) hurry(ctx context.Context, networkID, containerID string) {
	f := &s.fast
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting, running := f.wanted[networkID]
	f.wanted[networkID] = append(waiting, containerID)
	if !running {
		f.workers.Go(func() { s.work(ctx, networkID) })
	}
}

func (s *session) work(ctx context.Context, networkID string) {
	f := &s.fast
	for {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done(): // what is still wanted goes with the session
			return
		}
		f.mu.Lock()
		ids := f.wanted[networkID]
		if len(ids) == 0 {
			delete(f.wanted, networkID)
		} else {
			f.wanted[networkID] = nil
		}
		f.mu.Unlock()
		if len(ids) > 0 {
			s.ask(ctx, networkID, ids)
		}
		<-f.slots
		if len(ids) == 0 {
			return
		}
	}
}

// ask does one question of hurry. Failures are left to the full list that follows.
func (s *session) ask(ctx context.Context, networkID string, ids []string) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	p := patch{begun: s.fast.tick(), fresh: make(map[string]told)}
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == "" })
	var found []listed
	group, inner := errgroup.WithContext(ctx)
	if networkID != "" {
		group.Go(func() (err error) {
			p.network, p.attached, err = s.eng.inspect(inner, networkID)
			return err
		})
	}
	if len(ids) > 0 {
		group.Go(func() (err error) {
			found, err = s.find(inner, ids)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		s.log.Debug("network not asked about in time", slog.String("network", networkID), slog.Any("err", err))
		return
	}
	index := indexed(found)
	s.recall(p.attached, index)
	containers, failed := s.believe(ctx, s.eng, index.byID)
	if networkID == "" {
		return
	}
	pinned := len(p.network.Labels) > 0 || len(failed) > 0
	for key, a := range p.attached {
		l, ok := index.find(key, a)
		if !ok {
			continue
		}
		options := l.options(p.network.Network)
		p.fresh[a.endpointID] = told{container: containers[l.id], options: options}
		pinned = pinned || len(l.labels) > 0 || len(options) > 0 || s.asked(l.id)
	}
	if pinned || !p.network.stock() {
		s.patch(p)
	}
}

// recall adds the containers of endpoints that are not in the view yet, as far as
// they are remembered.
func (s *session) recall(attached map[string]attachment, into index) {
	view := s.View()
	for key, a := range attached {
		if _, ok := into.find(key, a); ok || view != nil && view.Containers[a.endpointID].Known {
			continue
		}
		if l, ok := s.cache.endpoint(key, a); ok {
			into.byID[l.id], into.byName[l.name] = l, l
		}
	}
}

// find lists containers by id.
func (s *session) find(ctx context.Context, ids []string) ([]listed, error) {
	by, values := byID, ids
	if len(ids) > maxAsked {
		by, values = everyone, nil
	}
	found, err := s.eng.containers(ctx, by, values...)
	if err != nil {
		return nil, err
	}
	s.cache.images(found)
	asked := make(map[string]bool, len(ids))
	for _, id := range ids {
		asked[id] = true
	}
	return slices.DeleteFunc(found, func(l listed) bool { return !asked[l.id] }), nil
}

// patch replaces one network's endpoints in the view, and tells so.
func (s *session) patch(p patch) {
	s.fast.merge.Lock()
	known := s.fast.listed > p.begun
	if !known {
		// What was told since that list was begun, and is in the view by now, it lacks all the same.
		for id, t := range s.fast.patches[p.network.ID].fresh {
			if _, ok := p.fresh[id]; !ok {
				p.fresh[id] = t
			}
		}
		s.fast.patches[p.network.ID] = p // for a list that was begun before
	}
	if !known && s.fast.listed > 0 {
		v := s.View().clone()
		p.apply(v)
		s.options.fill(v, false)
		s.mu.Lock()
		s.view = v
		s.mu.Unlock()
	}
	s.fast.merge.Unlock()
	s.urgent()
}
