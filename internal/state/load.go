package state

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/eipnet/eipnet/internal/model"
)

// create lays out a new file, with what the store holds.
func (s *Store) create() error {
	return s.db.Update(func(tx *bolt.Tx) error {
		for name, records := range s.records() {
			if late(name) && len(records) == 0 {
				continue
			}
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return fmt.Errorf("making bucket %s: %w", name, err)
			}
			for _, key := range slices.Sorted(maps.Keys(records)) {
				if err := b.Put([]byte(key), records[key]); err != nil {
					return fmt.Errorf("%s %q: %w", name, key, err)
				}
			}
		}
		meta, err := tx.CreateBucketIfNotExists([]byte(bucketMeta))
		if err != nil {
			return fmt.Errorf("making bucket %s: %w", bucketMeta, err)
		}
		return errors.Join(
			meta.Put([]byte(keySchema), []byte(strconv.Itoa(schemaVersion))),
			meta.Put([]byte(keyDigest), s.digest.bytes()),
		)
	})
}

// records returns all records by bucket.
func (s *Store) records() map[string]map[string][]byte {
	return map[string]map[string][]byte{
		bucketNetworks:  s.networks.raw,
		bucketEndpoints: s.endpoints.raw,
		bucketNICs:      s.nics.raw,
		bucketOriginals: s.originals.raw,
		bucketRebinds:   s.rebinds.raw,
		bucketHosts:     s.hosts.raw,
	}
}

// load checks the file and reads every record. It says what is lost or wrong;
// what it read is sound all the same.
func (s *Store) load() ([]string, error) {
	var lost []string
	err := s.db.View(func(tx *bolt.Tx) error {
		if err := checkSchema(tx); err != nil {
			return err
		}
		for err := range tx.Check() { // drained, or its goroutine stays
			if len(lost) == 0 {
				lost = append(lost, err.Error())
			}
		}
		for name := range s.records() {
			b := tx.Bucket([]byte(name))
			if b == nil && late(name) {
				continue // nobody said anything yet; that records are lost is told by the digest
			}
			if b == nil {
				lost = append(lost, "all "+name)
				continue
			}
			err := b.ForEach(func(k, v []byte) error {
				if err := s.loadRecord(name, string(k), v); err != nil {
					lost = append(lost, fmt.Sprintf("%s %.80q: %v", name, k, err))
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("%w: reading %s: %w", errDamaged, name, err)
			}
		}
		if !bytes.Equal(tx.Bucket([]byte(bucketMeta)).Get([]byte(keyDigest)), s.digest.bytes()) && len(lost) == 0 {
			lost = append(lost, "some, of which nothing is left")
		}
		return nil
	})
	slices.Sort(lost)
	return lost, err
}

// checkSchema tells whether the file is ours to read.
func checkSchema(tx *bolt.Tx) error {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		return fmt.Errorf("%w: no bucket %s", errDamaged, bucketMeta)
	}
	v, err := strconv.Atoi(string(meta.Get([]byte(keySchema))))
	switch {
	case err != nil || v < 1:
		return fmt.Errorf("%w: no schema version", errDamaged)
	case v > schemaVersion:
		return fmt.Errorf("%w: schema version %d, this one reads %d", errNewer, v, schemaVersion)
	}
	return nil
}

func (s *Store) loadRecord(bucket, key string, raw []byte) error {
	if s.records()[bucket][key] != nil {
		return errors.New("is there twice")
	}
	var err error
	switch bucket {
	case bucketNetworks:
		err = s.networks.load(key, raw)
	case bucketEndpoints:
		err = s.endpoints.load(key, raw)
	case bucketNICs:
		err = s.nics.load(key, raw)
	case bucketOriginals:
		err = s.originals.load(key, raw)
	case bucketRebinds:
		err = s.rebinds.load(key, raw)
	case bucketHosts:
		err = s.hosts.load(key, raw)
	}
	if err == nil {
		s.digest.add(raw)
	}
	return err
}

// rebuild writes what is sound to a new file and puts that in place of the
// damaged one, which is kept. Writing on into the damaged file would spread the
// damage: bbolt trusts the keys of its pages. Until the new file is complete
// the old one stays where it is.
func (s *Store) rebuild(lost []string) (*Store, *model.Problem, error) {
	old := s.path
	fail := func(err error) (*Store, *model.Problem, error) {
		return nil, nil, errors.Join(err, remove(old+".new"), s.Close())
	}
	if err := remove(old + ".new"); err != nil {
		return fail(err)
	}
	n, _, err := open(old+".new", s.log)
	if err != nil {
		return fail(err)
	}
	n.path, n.fresh = old, false
	n.networks, n.endpoints, n.nics, n.originals, n.rebinds, n.hosts, n.digest = s.networks, s.endpoints, s.nics, s.originals, s.rebinds, s.hosts, s.digest
	if err := guarded(n.create); err != nil {
		return fail(errors.Join(err, n.Close()))
	}
	aside, err := asideName(old)
	if err == nil {
		err = os.Link(old, aside)
	}
	if err == nil {
		err = os.Rename(old+".new", old)
	}
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		return fail(errors.Join(err, n.Close()))
	}
	text := strings.Join(lost, "; ")
	s.log.Warn("state file rebuilt", slog.String("path", old), slog.String("aside", aside), slog.String("damage", text))
	return n, &model.Problem{
		Code:     model.CodeStateDamaged,
		Severity: model.Warning,
		Subject:  old,
		Text:     fmt.Sprintf("damaged: %s; rebuilt from the sound records, the damaged file is kept as %s", text, aside),
		Fix:      "check the disk; what runs goes on as it is, and networks that have to be made again are named as problems",
	}, nil
}
