package state

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// The buckets of the file. A key is an id (networks, endpoints, rebinds), an
// interface name (nics), an entry's name (hosts) or the name of a switch (originals).
const (
	bucketNetworks  = "networks"
	bucketEndpoints = "endpoints"
	bucketNICs      = "nics"
	bucketOriginals = "originals"
	bucketRebinds   = "rebinds" // made with its first record, as the next one
	bucketHosts     = "hosts"
	bucketMeta      = "meta"
)

// Keys of the meta bucket.
const (
	keySchema = "schema" // number in decimal
	keyDigest = "digest" // see digest
)

const (
	// schemaVersion is the layout of the whole file, recordVersion that of one value.
	schemaVersion = 1
	recordVersion = 1

	recordHeader = 1 + 4 // version, crc32
)

// sum is the checksum of a record. It covers where the record stands, so that a
// damaged key is noticed just as a damaged value.
func sum(bucket, key string, body []byte) uint32 {
	h := crc32.NewIEEE()
	fmt.Fprintf(h, "%s/%s/%d/", bucket, key, recordVersion)
	h.Write(body)
	return h.Sum32()
}

// encode renders v as a record: version byte, checksum, JSON.
func encode(bucket, key string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %q: %w", bucket, key, err)
	}
	raw := make([]byte, 0, recordHeader+len(body))
	raw = append(raw, recordVersion)
	raw = binary.BigEndian.AppendUint32(raw, sum(bucket, key, body))
	return append(raw, body...), nil
}

// decode is the reverse of encode.
func decode(bucket, key string, raw []byte, v any) error {
	switch {
	case len(raw) < recordHeader:
		return errors.New("too short")
	case raw[0] != recordVersion:
		return fmt.Errorf("has version %d, not %d", raw[0], recordVersion)
	case binary.BigEndian.Uint32(raw[1:]) != sum(bucket, key, raw[recordHeader:]):
		return errors.New("checksum does not match")
	}
	return json.Unmarshal(raw[recordHeader:], v)
}

// digest stands for a set of records, in any order: how many there are, and the
// exclusive or of their checksums.
type digest struct{ count, xor uint32 }

func (d *digest) add(raw []byte) {
	d.count++
	d.xor ^= binary.BigEndian.Uint32(raw[1:])
}

func (d *digest) remove(raw []byte) {
	d.count--
	d.xor ^= binary.BigEndian.Uint32(raw[1:])
}

func (d digest) bytes() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, d.count), d.xor)
}

// late reports whether the bucket is made with its first record.
func late(bucket string) bool { return bucket == bucketRebinds || bucket == bucketHosts }

// table is the copy in memory of one bucket: the values as they are read and
// the records as they stand in the file.
type table[T any] struct {
	bucket string
	clone  func(T) T
	values map[string]T
	raw    map[string][]byte
}

func newTable[T any](bucket string, clone func(T) T) *table[T] {
	return &table[T]{bucket: bucket, clone: clone, values: map[string]T{}, raw: map[string][]byte{}}
}

// load takes over a record of the file.
func (t *table[T]) load(key string, raw []byte) error {
	var v T
	if err := decode(t.bucket, key, raw, &v); err != nil {
		return err
	}
	t.values[key], t.raw[key] = v, slices.Clone(raw)
	return nil
}

func (t *table[T]) get(key string) (T, bool) {
	v, ok := t.values[key]
	if !ok {
		return v, false
	}
	return t.clone(v), true
}

func (t *table[T]) keys() []string { return slices.Sorted(maps.Keys(t.values)) }

func (t *table[T]) all() []T {
	out := make([]T, 0, len(t.values))
	for _, key := range t.keys() {
		out = append(out, t.clone(t.values[key]))
	}
	return out
}

func cloneNetwork(n model.Network) model.Network {
	n.Options = maps.Clone(n.Options)
	return n
}

func cloneEndpoint(e model.Endpoint) model.Endpoint {
	e.Options = maps.Clone(e.Options)
	e.Publishes = slices.Clone(e.Publishes)
	e.Container.Labels = maps.Clone(e.Container.Labels)
	e.Container.Ignored = slices.Clone(e.Container.Ignored)
	return e
}

func same[T any](v T) T { return v }
