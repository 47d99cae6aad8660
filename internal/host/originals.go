package host

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
)

// original returns what was remembered since the host was started.
func (h *Host) original(key string) (string, bool) {
	v, ok := h.o.Originals.Original(key)
	boot, old, _ := strings.Cut(v, " ")
	if !ok || boot != h.boot {
		return "", false
	}
	return old, true
}

func (h *Host) setOriginal(key, value string) error {
	return h.o.Originals.SetOriginal(key, h.boot+" "+value)
}

// forgetOtherBoots forgets what was changed before the host was started again:
// switches and groups did not survive that.
func (h *Host) forgetOtherBoots() error {
	for _, key := range sorted(h.o.Originals.OriginalKeys()) {
		if _, ok := h.original(key); ok {
			continue
		}
		if err := h.o.Originals.DeleteOriginal(key); err != nil {
			return fmt.Errorf("forgetting %s: %w", key, err)
		}
		h.log.Debug("value from before the host's start forgotten", slog.String("key", key))
	}
	return nil
}

// MemoryOriginals is an [Originals] that forgets with the process: for tests,
// and for looking at a host without a state file.
// The zero value is empty and ready.
type MemoryOriginals struct {
	mu     sync.Mutex
	values map[string]string
}

// Original implements [Originals].
func (m *MemoryOriginals) Original(key string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	return v, ok
}

// SetOriginal implements [Originals].
func (m *MemoryOriginals) SetOriginal(key, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = make(map[string]string)
	}
	m.values[key] = value
	return nil
}

// DeleteOriginal implements [Originals].
func (m *MemoryOriginals) DeleteOriginal(key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
	return nil
}

// MoveOriginals implements [Originals].
func (m *MemoryOriginals) MoveOriginals(set map[string]string, forget []string) error {
	for _, key := range forget {
		_ = m.DeleteOriginal(key)
	}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		_ = m.SetOriginal(key, set[key])
	}
	return nil
}

// OriginalKeys implements [Originals]; the keys are sorted.
func (m *MemoryOriginals) OriginalKeys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.values))
}
