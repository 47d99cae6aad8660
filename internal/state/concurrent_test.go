package state

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

func TestSecondOpener(t *testing.T) {
	s, path := newFile(t)
	_, _, err := Open(path, quiet)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	if locked, is := errors.AsType[*LockedError](err); !is || locked.PID != os.Getpid() || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("error %v does not name process %d", err, os.Getpid())
	}
	if pid := Holder(path); pid != os.Getpid() {
		t.Errorf("held by process %d", pid)
	}
	ok(t, s.PutNetwork(model.Network{ID: "n"})) // the first one is not disturbed
	mustClose(t, s)
	if pid := Holder(path); pid != 0 {
		t.Errorf("nobody has it, and yet process %d holds it", pid)
	}
	mustClose(t, mustOpen(t, path))
}

func TestFiles(t *testing.T) {
	s, path := newFile(t)
	mustClose(t, s)
	for _, name := range []string{".new", ".damaged-1", ".mine", "2"} {
		ok(t, os.WriteFile(path+name, nil, 0o600))
	}
	got, err := Files(path)
	ok(t, err)
	if diff := cmp.Diff([]string{path, path + ".damaged-1", path + ".new"}, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestOpenedAtOnce opens a file that does not exist yet from many sides: one
// gets it, or several one after the other, and nobody's records are lost.
func TestOpenedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var put []string
	for i := range 8 {
		wg.Go(func() {
			s, problem, err := Open(path, quiet)
			if errors.Is(err, ErrLocked) {
				return
			}
			if err != nil || problem != nil {
				t.Errorf("problem %v, error %v", problem, err)
				return
			}
			id := strconv.Itoa(i)
			if err := errors.Join(s.PutNetwork(model.Network{ID: id}), s.Close()); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			put = append(put, id)
		})
	}
	wg.Wait()
	s := mustOpen(t, path)
	defer mustClose(t, s)
	if len(put) == 0 || len(s.Networks()) != len(put) {
		t.Errorf("put %v, found %v", put, s.Networks())
	}
}

func TestClosed(t *testing.T) {
	s, _ := newFile(t)
	ok(t, s.PutNetwork(model.Network{ID: "n"}))
	mustClose(t, s)
	if err := s.PutNetwork(model.Network{ID: "m"}); err == nil {
		t.Error("written after Close")
	}
	if len(s.Networks()) != 1 {
		t.Error("not readable after Close, or changed by a write that failed")
	}
	mustClose(t, s)
}

func TestNoID(t *testing.T) {
	s, _ := newFile(t)
	if s.PutNetwork(model.Network{}) == nil {
		t.Error("stored a network without id")
	}
}

func TestConcurrentUse(t *testing.T) {
	s, path := newFile(t)
	const workers, rounds = 8, 20
	ok(t, s.PutEndpoint(model.Endpoint{ID: "shared"}))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			id := strconv.Itoa(w)
			for r := range rounds {
				err := errors.Join(
					s.PutNetwork(model.Network{ID: id, MTU: r}),
					s.UpdateEndpoint("shared", func(e *model.Endpoint) {
						e.Publishes = append(e.Publishes, model.Publish{Port: uint16(w)})
					}),
					s.SetNICIDs(map[string]model.NICID{"eth" + id: 1}),
				)
				if err != nil {
					t.Error(err)
				}
				if n, found := s.Network(id); !found || n.MTU != r {
					t.Errorf("worker %d does not read its own write", w)
				}
				_, _, _ = s.Endpoints(), s.NICIDs(), s.NICKnown("eth0")
			}
			ok(t, s.DeleteNetwork(id))
		})
	}
	wg.Wait()
	mustClose(t, s)
	s = mustOpen(t, path)
	defer mustClose(t, s)
	e, _ := s.Endpoint("shared")
	if len(e.Publishes) != workers*rounds || len(s.Networks()) != 0 {
		t.Errorf("%d updates, want %d; networks left: %v", len(e.Publishes), workers*rounds, s.Networks())
	}
}
