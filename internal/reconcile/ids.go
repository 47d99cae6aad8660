package reconcile

import (
	"maps"
	"sync"

	"github.com/eipnet/eipnet/internal/model"
)

// steadyIDs is a Store that keeps NIC ids which could not be written: as long as
// the disk refuses, a NIC that is asked for later must not take the number that
// another one's connections are marked with.
type steadyIDs struct {
	Store
	mu      sync.Mutex
	unsaved map[string]model.NICID // nil: what the Store says
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
