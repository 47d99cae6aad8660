package state

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/model"
)

// Store is the open state file. Its methods may be called from any goroutine.
// What they return is the caller's: nothing in it is shared with the store.
type Store struct {
	path  string
	log   *slog.Logger
	fresh bool

	// writing serialises writers, who alone change what mu guards and hold mu
	// only for the change in memory: readers do not wait for the disk.
	writing sync.Mutex
	db      *bolt.DB
	broken  error // set once bbolt panicked: its locks cannot be trusted any more
	writes  int   // transactions so far
	// held keeps the file locked that a copy is used of; nil: the file itself is open.
	held *os.File

	mu        sync.RWMutex
	networks  *table[model.Network]
	endpoints *table[model.Endpoint]
	nics      *table[model.NICID]
	originals *table[string]
	rebinds   *table[model.Rebind]
	hosts     *table[model.HostEntry]
	digest    digest
}

func newStore(path string, log *slog.Logger) *Store {
	return &Store{
		path:      path,
		log:       log,
		networks:  newTable(bucketNetworks, cloneNetwork),
		endpoints: newTable(bucketEndpoints, cloneEndpoint),
		nics:      newTable(bucketNICs, same[model.NICID]),
		originals: newTable(bucketOriginals, same[string]),
		rebinds:   newTable(bucketRebinds, model.Rebind.Clone),
		hosts:     newTable(bucketHosts, model.HostEntry.Clone),
	}
}

// Fresh reports whether this Open made the file: there was none, or it was set aside.
func (s *Store) Fresh() bool { return s.fresh }

// Close closes the file. Reads go on working; writes fail from then on.
func (s *Store) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.held != nil {
		_ = s.held.Close() // nothing was written to it
		s.held = nil
	}
	if s.broken != nil {
		return nil // bbolt's locks may be held for ever; the file goes with the process
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("closing state file %s: %w", s.path, err)
	}
	return nil
}

// Networks lists the networks, sorted by id.
func (s *Store) Networks() []model.Network {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.networks.all()
}

// Network returns the network with that id.
func (s *Store) Network(id string) (model.Network, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.networks.get(id)
}

// PutNetwork stores a network. An equal one already there is success without a write.
func (s *Store) PutNetwork(n model.Network) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.networks, map[string]model.Network{n.ID: n})
}

// DeleteNetwork forgets a network. An absent one is success.
func (s *Store) DeleteNetwork(id string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.networks, nil, id)
}

// Endpoints lists the endpoints, sorted by id.
func (s *Store) Endpoints() []model.Endpoint {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.endpoints.all()
}

// Endpoint returns the endpoint with that id.
func (s *Store) Endpoint(id string) (model.Endpoint, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.endpoints.get(id)
}

// PutEndpoint stores an endpoint. An equal one already there is success without a write.
func (s *Store) PutEndpoint(e model.Endpoint) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.endpoints, map[string]model.Endpoint{e.ID: e})
}

// DeleteEndpoint forgets an endpoint. An absent one is success.
func (s *Store) DeleteEndpoint(id string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.endpoints, nil, id)
}

// UpdateEndpoint changes an endpoint with no other writer in between. An absent
// one is success, and fn is not called. The id stays what it was. fn must not
// write to the store.
func (s *Store) UpdateEndpoint(id string, fn func(*model.Endpoint)) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	e, ok := s.endpoints.get(id)
	if !ok {
		return nil
	}
	fn(&e)
	e.ID = id
	return put(s, s.endpoints, map[string]model.Endpoint{id: e})
}

// Rebinds lists what was said with `eipnet rebind`, sorted by container id.
func (s *Store) Rebinds() []model.Rebind {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rebinds.all()
}

// Rebind returns what was said of the container with that id.
func (s *Store) Rebind(containerID string) (model.Rebind, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rebinds.get(containerID)
}

// PutRebind stores what was said of a container, in place of what was said before.
func (s *Store) PutRebind(r model.Rebind) error {
	if r.ContainerID == "" {
		return errors.New("remembering a rebind: it names no container")
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.rebinds, map[string]model.Rebind{r.ContainerID: r})
}

// DeleteRebind forgets what was said of a container. An absent one is success.
func (s *Store) DeleteRebind(containerID string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.rebinds, nil, containerID)
}

// HostEntries lists the addresses of the host's own programs, sorted by name.
func (s *Store) HostEntries() []model.HostEntry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.hosts.all()
}

// PutHostEntry stores an entry, in place of what had its name.
func (s *Store) PutHostEntry(e model.HostEntry) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.hosts, map[string]model.HostEntry{e.Name: e})
}

// DeleteHostEntry forgets an entry. An absent one is success.
func (s *Store) DeleteHostEntry(name string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.hosts, nil, name)
}

// NICIDs returns the mark id of every NIC that has one, by name.
func (s *Store) NICIDs() map[string]model.NICID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.nics.values)
}

// SetNICIDs replaces all mark ids in one transaction; none is written if nothing changes.
func (s *Store) SetNICIDs(ids map[string]model.NICID) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	var gone []string
	for name := range s.nics.values {
		if _, ok := ids[name]; !ok {
			gone = append(gone, name)
		}
	}
	return put(s, s.nics, ids, gone...)
}

// NICKnown reports whether a NIC of that name has a mark id, compared without
// case: Docker's CLI lower-cases endpoint options.
func (s *Store) NICKnown(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for known := range s.nics.values {
		if strings.EqualFold(known, name) {
			return true
		}
	}
	return false
}

// Original returns the value that a switch of the host had before we changed it.
func (s *Store) Original(key string) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.originals.get(key)
}

// SetOriginal records the value that a switch had. It replaces a recorded one:
// callers ask with Original first.
func (s *Store) SetOriginal(key, value string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.originals, map[string]string{key: value})
}

// DeleteOriginal forgets a switch. An absent one is success.
func (s *Store) DeleteOriginal(key string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.originals, nil, key)
}

// MoveOriginals records switches and forgets others in one transaction: all of
// it, or none. A key of set is not to be among those to forget.
func (s *Store) MoveOriginals(set map[string]string, forget []string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return put(s, s.originals, set, forget...)
}

// OriginalKeys lists the recorded switches, sorted.
func (s *Store) OriginalKeys() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.originals.keys()
}

// put stores and forgets records of one table in one transaction, without one if
// nothing changes, and then in memory. Callers hold s.writing.
func put[T any](s *Store, t *table[T], set map[string]T, forget ...string) error {
	raw := make(map[string][]byte)
	after := s.digest
	for key, v := range set {
		if key == "" {
			return fmt.Errorf("storing in %s: no id", t.bucket)
		}
		r, err := encode(t.bucket, key, v)
		if err != nil {
			return err
		}
		old, ok := t.raw[key]
		if ok && string(old) == string(r) {
			continue
		}
		if ok {
			after.remove(old)
		}
		after.add(r)
		raw[key] = r
	}
	for _, key := range forget {
		if old, ok := t.raw[key]; ok {
			after.remove(old)
			raw[key] = nil
		}
	}
	if len(raw) == 0 {
		return nil
	}
	if err := s.write(t.bucket, raw, after); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digest = after
	for key, r := range raw {
		if r == nil {
			delete(t.values, key)
			delete(t.raw, key)
			continue
		}
		t.values[key], t.raw[key] = t.clone(set[key]), r
	}
	return nil
}

// write brings records (nil: to be deleted) and the new digest into the file.
func (s *Store) write(bucket string, records map[string][]byte, d digest) error {
	if s.broken != nil {
		return s.broken
	}
	err := guarded(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte(bucket))
			if err != nil {
				return fmt.Errorf("making bucket %s: %w", bucket, err)
			}
			for _, key := range slices.Sorted(maps.Keys(records)) {
				var err error
				if r := records[key]; r == nil {
					err = b.Delete([]byte(key))
				} else {
					err = b.Put([]byte(key), r)
				}
				if err != nil {
					return fmt.Errorf("%s %q: %w", bucket, key, err)
				}
			}
			return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyDigest), d.bytes())
		})
	})
	s.writes++
	if err == nil {
		crash.Point("state file: " + bucket)
		return nil
	}
	err = fmt.Errorf("writing state file %s: %w", s.path, err)
	if errors.Is(err, errPanic) {
		s.broken = err
		s.log.Error("state file damaged while running", slog.String("path", s.path), slog.Any("err", err))
	}
	return err
}
