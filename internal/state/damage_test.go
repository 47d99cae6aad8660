package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// filled returns a file of several pages, and what it holds.
func filled(t *testing.T) ([]byte, []model.Endpoint) {
	t.Helper()
	s, path := newFile(t)
	for i := range 200 {
		ok(t, s.PutEndpoint(model.Endpoint{
			ID:        fmt.Sprintf("%064d", i),
			NetworkID: "network",
			Container: model.Container{Known: true, Name: fmt.Sprintf("container-%d", i)},
		}))
	}
	for i := range 20 {
		ok(t, s.PutNetwork(model.Network{ID: fmt.Sprintf("%064d", i), Bridge: "br"}))
	}
	for i := range 50 {
		ok(t, s.DeleteEndpoint(fmt.Sprintf("%064d", i*3))) // makes a freelist
	}
	ok(t, s.SetNICIDs(map[string]model.NICID{"eth0": 1}))
	mustClose(t, s)
	data, err := os.ReadFile(path)
	ok(t, err)
	return data, s.Endpoints()
}

// openDamaged opens a file of the given content and checks what holds after any
// damage: there is a store, all that it has is true, what is missing was told,
// it can be used, and the damage is told once.
func openDamaged(t *testing.T, data []byte, want []model.Endpoint) (*Store, *model.Problem, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	ok(t, os.WriteFile(path, data, 0o600))
	s, problem, err := Open(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Endpoints()
	known := make(map[string]model.Endpoint)
	for _, e := range want {
		known[e.ID] = e
	}
	for _, e := range got {
		if d := cmp.Diff(known[e.ID], e, compare); d != "" {
			t.Errorf("untrue record (-want +got):\n%s", d)
		}
	}
	if problem == nil && len(got) != len(want) {
		t.Errorf("%d endpoints of %d, without a problem", len(got), len(want))
	}
	if s.Fresh() && (problem == nil || problem.Severity != model.Failure) {
		t.Errorf("set aside with problem %v", problem)
	}
	ok(t, s.PutNetwork(model.Network{ID: "new"}))
	mustClose(t, s)
	again := mustOpen(t, path)
	if _, found := again.Network("new"); !found {
		t.Error("what was written after the damage is lost")
	}
	if len(again.Endpoints()) != len(got) {
		t.Errorf("%d endpoints at first, %d when opened again", len(got), len(again.Endpoints()))
	}
	mustClose(t, again)
	return s, problem, path
}

func TestTruncated(t *testing.T) {
	data, want := filled(t)
	for size := 0; size < len(data); size += 4096 {
		for _, size := range []int{size, size + 100} {
			t.Run(strconv.Itoa(size), func(t *testing.T) {
				s, problem, path := openDamaged(t, data[:size], want)
				if !s.Fresh() {
					return // the end of the file was not in use
				}
				if problem.Code != model.CodeStateDamaged {
					t.Errorf("problem %v", problem)
				}
				aside, err := os.ReadFile(path + ".damaged-1")
				ok(t, err)
				if !bytes.Equal(aside, data[:size]) {
					t.Error("the damaged file was changed")
				}
			})
		}
	}
}

func TestRandomDamage(t *testing.T) {
	data, want := filled(t)
	const files = 150
	unharmed := 0
	for seed := range uint64(files) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			damaged := bytes.Clone(data)
			for range 1 + r.IntN(8) {
				at := r.IntN(len(data))
				if seed%2 == 0 {
					at = at/4096*4096 + r.IntN(256) // where the pointers are
				}
				damaged[at] ^= byte(1 + r.IntN(255))
			}
			if _, problem, _ := openDamaged(t, damaged, want); problem == nil {
				unharmed++
			}
		})
	}
	t.Logf("%d of %d files unharmed", unharmed, files)
}

// TestChurn writes and deletes at random: a file that bbolt wrote is never taken
// for a damaged one.
func TestChurn(t *testing.T) {
	s, path := newFile(t)
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 2))
		keep := r.IntN(10)
		for range 20 {
			ids := make(map[string]model.NICID)
			for i := range 600 {
				if r.IntN(10) < keep {
					ids[fmt.Sprintf("%0*d", 1+r.IntN(100), i)] = model.NICID(r.IntN(98))
				}
			}
			ok(t, s.SetNICIDs(ids))
		}
		for range 200 {
			id := strconv.Itoa(r.IntN(100))
			ok(t, s.PutNetwork(model.Network{ID: id, Bridge: strings.Repeat("x", r.IntN(6000))}))
			ok(t, s.DeleteNetwork(strconv.Itoa(r.IntN(100))))
		}
		networks, ids := s.Networks(), s.NICIDs()
		mustClose(t, s)
		s = mustOpen(t, path)
		if d := cmp.Diff(networks, s.Networks(), compare) + cmp.Diff(ids, s.NICIDs(), compare); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	}
	mustClose(t, s)
}

func TestGarbage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, 100, 4096, 8192, 100_000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			s, problem, _ := openDamaged(t, data, nil)
			if !s.Fresh() || problem == nil {
				t.Errorf("fresh %v, problem %v", s.Fresh(), problem)
			}
		})
	}
}

// TestDamagedTwice keeps both files.
func TestDamagedTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	for i := range 2 {
		ok(t, os.WriteFile(path, []byte("garbage"), 0o600))
		s, problem, err := Open(path, quiet)
		ok(t, err)
		if aside := fmt.Sprintf("%s.damaged-%d", path, i+1); !strings.Contains(problem.Text, aside) {
			t.Errorf("problem %v does not name %s", problem, aside)
		}
		mustClose(t, s)
	}
}

// edit changes a file behind the store's back.
func edit(t *testing.T, path string, fn func(*bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	ok(t, err)
	ok(t, db.Update(fn))
	ok(t, db.Close())
}

func TestBadRecord(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(networks *bolt.Bucket) error
		text   string
		left   int
	}{
		{"flipped bit", func(b *bolt.Bucket) error {
			v := bytes.Clone(b.Get([]byte("a")))
			v[len(v)-3] ^= 1
			return b.Put([]byte("a"), v)
		}, `networks "a": checksum does not match`, 1},
		{"other key", func(b *bolt.Bucket) error {
			return b.Put([]byte("c"), bytes.Clone(b.Get([]byte("a"))))
		}, `networks "c": checksum does not match`, 2},
		{"too short", func(b *bolt.Bucket) error { return b.Put([]byte("a"), []byte{1}) }, `networks "a": too short`, 1},
		{"newer version", func(b *bolt.Bucket) error {
			v := bytes.Clone(b.Get([]byte("a")))
			v[0] = 2
			return b.Put([]byte("a"), v)
		}, `networks "a": has version 2, not 1`, 1},
		{"gone", func(b *bolt.Bucket) error { return b.Delete([]byte("a")) }, "some, of which nothing is left", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, path := newFile(t)
			ok(t, s.PutNetwork(model.Network{ID: "a"}))
			ok(t, s.PutNetwork(model.Network{ID: "b"}))
			mustClose(t, s)
			edit(t, path, func(tx *bolt.Tx) error { return test.change(tx.Bucket([]byte(bucketNetworks))) })
			var log bytes.Buffer
			s, problem, err := Open(path, slog.New(slog.NewTextHandler(&log, nil)))
			ok(t, err)
			if s.Fresh() || len(s.Networks()) != test.left {
				t.Errorf("fresh %v, networks %v", s.Fresh(), s.Networks())
			}
			if problem == nil || problem.Severity != model.Warning || !strings.Contains(problem.Text, test.text) {
				t.Errorf("problem %v, want %q", problem, test.text)
			}
			if !strings.Contains(log.String(), "state file rebuilt") {
				t.Errorf("log: %s", &log)
			}
			if _, err := os.Stat(path + ".damaged-1"); err != nil {
				t.Error(err)
			}
			mustClose(t, s)
			mustClose(t, mustOpen(t, path))
		})
	}
}

func TestLostBucket(t *testing.T) {
	s, path := newFile(t)
	ok(t, s.PutNetwork(model.Network{ID: "a"}))
	ok(t, s.PutEndpoint(model.Endpoint{ID: "e"}))
	mustClose(t, s)
	edit(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketNetworks)) })
	s, problem, err := Open(path, quiet)
	ok(t, err)
	if problem == nil || !strings.Contains(problem.Text, "all networks") || len(s.Endpoints()) != 1 {
		t.Errorf("problem %v, endpoints %v", problem, s.Endpoints())
	}
	ok(t, s.PutNetwork(model.Network{ID: "a"}))
	mustClose(t, s)
}

func TestNewerSchema(t *testing.T) {
	s, path := newFile(t)
	ok(t, s.PutNetwork(model.Network{ID: "a"}))
	mustClose(t, s)
	edit(t, path, func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketMeta)).Put([]byte(keySchema), []byte("2")) })
	s, problem, err := Open(path, quiet)
	ok(t, err)
	defer mustClose(t, s)
	if !s.Fresh() || problem == nil || !strings.Contains(problem.String(), "newer") || !strings.Contains(problem.Fix, "move the file back") {
		t.Errorf("fresh %v, problem %v", s.Fresh(), problem)
	}
	if _, err := os.Stat(path + ".damaged-1"); err != nil {
		t.Error(err)
	}
}

func TestNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	ok(t, os.WriteFile(file, nil, 0o600))
	_, _, err := Open(filepath.Join(file, "state.db"), quiet)
	if err == nil || !strings.Contains(err.Error(), "making the state directory") {
		t.Errorf("error %v", err)
	}
}

func TestDirectoryMode(t *testing.T) {
	_, path := newFile(t)
	for name, want := range map[string]fs.FileMode{filepath.Dir(path): 0o700 | fs.ModeDir, path: 0o600} {
		i, err := os.Stat(name)
		ok(t, err)
		if i.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, i.Mode(), want)
		}
	}
}

// mount makes a file system of the given size, which needs root.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("mounting: %v", err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestDiskFull(t *testing.T) {
	path := filepath.Join(mount(t, "size=128k"), "state.db")
	s := mustOpen(t, path)
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = s.PutNetwork(model.Network{ID: strconv.Itoa(n), Bridge: strings.Repeat("x", 1000)})
	}
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v", err)
	}
	if len(s.Networks()) != n-1 {
		t.Errorf("%d networks, %d were stored", len(s.Networks()), n-1)
	}
	mustClose(t, s)
	s = mustOpen(t, path)
	if len(s.Networks()) != n-1 {
		t.Errorf("%d networks after opening again, %d were stored", len(s.Networks()), n-1)
	}
	mustClose(t, s)
}

// TestDiskFullAtFirst: where no file can be made, one in memory does.
func TestDiskFullAtFirst(t *testing.T) {
	dir := mount(t, "size=8k")
	inMemory(t, filepath.Join(dir, "state.db"), 0, unix.ENOSPC)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDamagedOnFullDisk: the damaged file is set aside, there is no room for a
// new one, and both are told.
func TestDamagedOnFullDisk(t *testing.T) {
	path := filepath.Join(mount(t, "size=8k"), "state.db")
	ok(t, os.WriteFile(path, make([]byte, 8192), 0o600))
	problem := inMemory(t, path, 0, unix.ENOSPC)
	if !strings.Contains(problem.Text, path+".damaged-1") {
		t.Errorf("problem %v does not say where the damaged file is", problem)
	}
}

// TestReadOnly: on a file system that cannot be written the file is read all the
// same, and what is missing is made in memory.
func TestReadOnly(t *testing.T) {
	dir := mount(t, "size=256k")
	path := filepath.Join(dir, "state.db")
	s := mustOpen(t, path)
	ok(t, s.PutNetwork(model.Network{ID: "n"}))
	mustClose(t, s)
	before, err := os.ReadFile(path)
	ok(t, err)
	damaged := bytes.Clone(before)
	clear(damaged[:8192])
	ok(t, os.WriteFile(filepath.Join(dir, "damaged.db"), damaged, 0o600))
	ok(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	inMemory(t, path, 1, unix.EROFS)
	inMemory(t, path, 1, unix.EROFS) // nothing was remembered
	inMemory(t, filepath.Join(dir, "other.db"), 0, unix.EROFS)
	inMemory(t, filepath.Join(dir, "sub", "state.db"), 0, unix.EROFS)
	problem := inMemory(t, filepath.Join(dir, "damaged.db"), 0, unix.EROFS)
	if !strings.Contains(problem.Text, "checksum does not match; left as it is") {
		t.Errorf("problem %v does not tell of the damage", problem)
	}
	after, err := os.ReadFile(path)
	ok(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the file was changed")
	}
}

// inMemory opens a file that cannot be written, which has so many networks, and
// checks that it can be used, is locked, and that the problem says why.
func inMemory(t *testing.T, path string, networks int, cause unix.Errno) *model.Problem {
	t.Helper()
	s, problem, err := Open(path, quiet)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if problem == nil || problem.Code != model.CodeStateReadOnly || problem.Subject != path || !strings.Contains(problem.Text, cause.Error()) {
		t.Fatalf("%s: problem %v", path, problem)
	}
	if len(s.Networks()) != networks {
		t.Errorf("%s: networks %v", path, s.Networks())
	}
	if _, err := os.Stat(path); err == nil {
		if _, _, err := Open(path, quiet); !errors.Is(err, ErrLocked) {
			t.Errorf("%s: opened a second time: %v", path, err)
		}
	}
	for i := range 300 { // what no file system of the test's has room for
		ok(t, s.PutNetwork(model.Network{ID: strconv.Itoa(i), Bridge: strings.Repeat("x", 1000)}))
	}
	mustClose(t, s)
	for _, dir := range memoryDirs() {
		if left, _ := filepath.Glob(filepath.Join(dir, fmt.Sprintf("eipnet-state-%d-*", os.Getpid()))); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	return problem
}

// TestCopy: a copy is read while somebody else has the file, and changes nothing.
func TestCopy(t *testing.T) {
	s, path := newFile(t)
	defer mustClose(t, s)
	ok(t, s.PutNetwork(model.Network{ID: "n"}))
	c, problem, err := Copy(path, quiet)
	ok(t, err)
	if problem != nil || len(c.Networks()) != 1 {
		t.Errorf("problem %v, networks %v", problem, c.Networks())
	}
	ok(t, c.PutNetwork(model.Network{ID: "m"}))
	mustClose(t, c)
	if len(s.Networks()) != 1 {
		t.Error("the copy is none")
	}
}
