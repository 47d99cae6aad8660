package reconcile

import (
	"maps"
	"slices"
	"sync"

	"github.com/eipnet/eipnet/internal/model"
)

// steadyIDs is a Store that keeps NIC ids which are not written yet, as the disk
// refuses or an earlier process has left them in the kernel: a NIC that is asked
// for later must not take the number that another one's connections are marked with.
type steadyIDs struct {
	Store
	mu      sync.Mutex
	unsaved map[string]model.NICID // nil: what the Store says
}

// inherit adds the ids that the kernel has, of NICs of which none is remembered,
// as the state was lost: with another, old routes would lead astray what is
// pinned to a NIC, and marks of connections would mean another.
func (s *steadyIDs) inherit(kernel map[string]model.NICID) {
	ids := s.NICIDs()
	taken := slices.Collect(maps.Values(ids))
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, id := range kernel {
		if _, known := ids[name]; known || slices.Contains(taken, id) {
			continue
		}
		if s.unsaved == nil {
			s.unsaved = make(map[string]model.NICID)
			maps.Copy(s.unsaved, ids)
		}
		s.unsaved[name] = id
	}
}

// NICIDs implements [Store].
func (s *steadyIDs) NICIDs() map[string]model.NICID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved != nil {
		return maps.Clone(s.unsaved)
	}
	return s.Store.NICIDs()
}

// SetNICIDs implements [Store].
func (s *steadyIDs) SetNICIDs(ids map[string]model.NICID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Store.SetNICIDs(ids); err != nil {
		s.unsaved = maps.Clone(ids)
		return err
	}
	s.unsaved = nil
	return nil
}
