package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// bbolt's file format, version 2, as far as it has pointers. Numbers are in the
// machine's byte order.
//
//	page    id u64 · flags u16 · count u16 · overflow u32 · elements
//	meta    magic u32 · version u32 · page size u32 · flags u32 · root u64 · sequence u64 ·
//	        freelist u64 · high-water mark u64 · txid u64 · fnv64a of all that
//	branch  pos u32 · key size u32 · page u64
//	leaf    flags u32 · pos u32 · key size u32 · value size u32
//	bucket  root u64 · sequence u64 (a leaf's value); root 0: a page follows inline
const (
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
	pageHeader   = 16
	element      = 16
	bucketHeader = 16
	metaSize     = 64

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10

	leafIsBucket = 0x01

	manyFree = 0xffff // this count of a freelist means: the first id is the count
)

var order = binary.NativeEndian

// meta is the part of a meta page that matters here.
type meta struct{ root, freelist, high, txid uint64 }

// verifier walks a file that nobody has checked. bbolt would follow a bad page
// number out of its memory map, and a bad overflow count into using up memory.
type verifier struct {
	data []byte
	size uint64 // of a page
	meta meta
	used map[uint64]bool
	// notes tell of what is damaged without making the file unreadable.
	notes []string
}

// verify checks that every pointer in a bbolt file leads where it may. It
// returns notes on what is damaged without making the file unusable.
func verify(data []byte) ([]string, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("%w: empty", errDamaged)
	}
	v := &verifier{data: data, size: uint64(os.Getpagesize()), used: make(map[uint64]bool)}
	m0, err0 := v.readMeta(0)
	m1, err1 := v.readMeta(1)
	switch {
	case err0 != nil && err1 != nil:
		return nil, fmt.Errorf("%w: %w", errDamaged, err0)
	case err0 != nil, err1 != nil:
		// Either a write that was cut short, and then nobody was told that it was
		// done; or damage, and then the last one is undone.
		v.notes = append(v.notes, fmt.Sprintf("perhaps the last change (%v)", errors.Join(err0, err1)))
	}
	v.meta = m0
	if err0 != nil || (err1 == nil && m1.txid > m0.txid) {
		v.meta = m1
	}
	if err := v.walk(); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return v.notes, nil
}

func (v *verifier) walk() error {
	if v.meta.high < 4 || v.meta.high > uint64(len(v.data))/v.size {
		return fmt.Errorf("%d pages, but the file has %d bytes", v.meta.high, len(v.data))
	}
	if err := v.page(v.meta.root); err != nil {
		return err
	}
	return v.freelist()
}

func (v *verifier) readMeta(n uint64) (meta, error) {
	start := n*v.size + pageHeader
	if start+metaSize > uint64(len(v.data)) {
		return meta{}, fmt.Errorf("meta page %d: file has %d bytes", n, len(v.data))
	}
	b := v.data[start : start+metaSize]
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	switch {
	case order.Uint32(b) != boltMagic, order.Uint32(b[4:]) != boltVersion, order.Uint64(b[metaSize-8:]) != h.Sum64():
		return meta{}, fmt.Errorf("meta page %d: checksum does not match", n)
	case uint64(order.Uint32(b[8:])) != v.size:
		return meta{}, fmt.Errorf("meta page %d: page size %d, this machine's is %d", n, order.Uint32(b[8:]), v.size)
	}
	return meta{
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		high:     order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}, nil
}

// claim returns a page with its overflow, which nothing else may use.
func (v *verifier) claim(id uint64) ([]byte, error) {
	if id < 2 || id >= v.meta.high {
		return nil, fmt.Errorf("page %d: out of bounds", id)
	}
	head := v.data[id*v.size:]
	last := id + uint64(order.Uint32(head[12:]))
	if order.Uint64(head) != id || last >= v.meta.high {
		return nil, fmt.Errorf("page %d: bad header", id)
	}
	for n := id; n <= last; n++ {
		if v.used[n] {
			return nil, fmt.Errorf("page %d: used twice", n)
		}
		v.used[n] = true
	}
	return v.data[id*v.size : (last+1)*v.size], nil
}

func (v *verifier) page(id uint64) error {
	b, err := v.claim(id)
	if err != nil {
		return err
	}
	if err := v.elements(b); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks a branch or leaf page, and what hangs below it.
func (v *verifier) elements(b []byte) error {
	if len(b) < pageHeader {
		return errors.New("too short")
	}
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if pageHeader+count*element > len(b) {
		return fmt.Errorf("%d elements do not fit", count)
	}
	if (flags != pageBranch && flags != pageLeaf) || (flags == pageBranch && count == 0) {
		return fmt.Errorf("flags %#x with %d elements", flags, count)
	}
	for i := range count {
		at := b[pageHeader+i*element:]
		if flags == pageBranch {
			if uint64(order.Uint32(at))+uint64(order.Uint32(at[4:])) > uint64(len(at)) {
				return fmt.Errorf("element %d: out of bounds", i)
			}
			child := order.Uint64(at[8:])
			if err := v.page(child); err != nil {
				return err
			}
			if !bytes.Equal(key(at, flags), v.firstKey(child)) {
				v.notes = append(v.notes, fmt.Sprintf("page %d: first key is not its parent's", child))
			}
			continue
		}
		value := uint64(order.Uint32(at[4:])) + uint64(order.Uint32(at[8:]))
		end := value + uint64(order.Uint32(at[12:]))
		if end > uint64(len(at)) {
			return fmt.Errorf("element %d: out of bounds", i)
		}
		if order.Uint32(at)&leafIsBucket != 0 {
			if err := v.bucket(at[value:end]); err != nil {
				return fmt.Errorf("bucket %d: %w", i, err)
			}
		}
	}
	return nil
}

// firstKey returns the first key of a page that was checked, none if it is empty.
func (v *verifier) firstKey(id uint64) []byte {
	b := v.data[id*v.size:]
	if order.Uint16(b[10:]) == 0 {
		return nil
	}
	return key(b[pageHeader:], order.Uint16(b[8:]))
}

// key returns the key of a branch or leaf element that was checked.
func key(at []byte, flags uint16) []byte {
	where := at
	if flags == pageLeaf {
		where = at[4:]
	}
	pos := order.Uint32(where)
	return at[pos : pos+order.Uint32(where[4:])]
}

func (v *verifier) bucket(value []byte) error {
	if len(value) < bucketHeader {
		return errors.New("too short")
	}
	if root := order.Uint64(value); root != 0 {
		return v.page(root)
	}
	if len(value) >= bucketHeader+pageHeader && order.Uint16(value[bucketHeader+8:]) != pageLeaf {
		return errors.New("no leaf")
	}
	return v.elements(value[bucketHeader:])
}

// freelist checks that every page is either used or free, and none is both.
func (v *verifier) freelist() error {
	b, err := v.claim(v.meta.freelist)
	if err != nil {
		return fmt.Errorf("freelist: %w", err)
	}
	if order.Uint16(b[8:]) != pageFreelist {
		return errors.New("freelist: wrong kind of page")
	}
	count, ids := uint64(order.Uint16(b[10:])), b[pageHeader:]
	if count == manyFree {
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return fmt.Errorf("freelist: %d ids do not fit", count)
	}
	for ; count > 0; count-- {
		id := order.Uint64(ids)
		ids = ids[8:]
		if id < 2 || id >= v.meta.high || v.used[id] {
			return fmt.Errorf("freelist: page %d is not free", id)
		}
		v.used[id] = true
	}
	if uint64(len(v.used)) != v.meta.high-2 {
		return errors.New("freelist: pages missing")
	}
	return nil
}
