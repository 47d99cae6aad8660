package programs_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/programs"
)

// world is a driver whose endpoints are only remembered.
type world struct {
	mu        sync.Mutex
	endpoints []model.Endpoint
	gone      map[string]bool // links that are not there
	refuse    error           // what Detach answers
	meanwhile func(id string) // called while an endpoint is removed
}

func (w *world) Attach(_ context.Context, p model.Program) (model.Attachment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endpoints = append(w.endpoints, model.Endpoint{ID: p.Name, Veth: p.Name, Phase: model.Joined})
	return model.Attachment{ID: p.Name}, nil
}

func (w *world) Detach(_ context.Context, id string) error {
	if w.meanwhile != nil {
		w.meanwhile(id)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return w.refuse
	}
	var left []model.Endpoint
	for _, e := range w.endpoints {
		if e.ID != id {
			left = append(left, e)
		}
	}
	w.endpoints = left
	return nil
}

func (w *world) Attached() []model.Endpoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.endpoints)
}

// refusing makes Detach answer err.
func (w *world) refusing(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = err
}

func (w *world) ids() []string {
	var out []string
	for _, e := range w.Attached() {
		out = append(out, e.ID)
	}
	return out
}

const grace = 10 * time.Second

func keeper(w *world) *programs.Keeper {
	return programs.New(programs.Options{
		Log: slog.New(slog.DiscardHandler), Driver: w, Grace: grace,
		LinkThere: func(name string) bool { return !w.gone[name] },
	})
}

func attach(t *testing.T, k *programs.Keeper, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := k.Attach(t.Context(), model.Program{Name: n}); err != nil {
			t.Fatal(err)
		}
	}
}

// An endpoint lives as long as somebody holds it.
func TestHold(t *testing.T) {
	w := &world{}
	k := keeper(w)
	attach(t, k, "a", "b")
	if err := k.Resume("a"); err != nil {
		t.Error(err)
	}
	k.Release(t.Context(), "a")
	if diff := cmp.Diff([]string{"a", "b"}, w.ids()); diff != "" {
		t.Errorf("with one holder left (-want +got)\n%s", diff)
	}
	k.Release(t.Context(), "a")
	if diff := cmp.Diff([]string{"b"}, w.ids()); diff != "" {
		t.Errorf("without a holder (-want +got)\n%s", diff)
	}
	if err := k.Resume("a"); !errors.Is(err, programs.ErrUnknown) {
		t.Errorf("resuming what is gone: %v", err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	k.Release(stopped, "b")
	if diff := cmp.Diff([]string{"b"}, w.ids()); diff != "" {
		t.Errorf("as the daemon ends (-want +got)\n%s", diff)
	}
	if err := k.Resume("b"); err != nil {
		t.Errorf("resuming as the daemon ends: %v", err)
	}
}

// What an earlier daemon left goes at once where its namespace is gone, after
// the grace where nobody takes hold, and stays where somebody does. What is
// attached meanwhile is not touched.
func TestOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{gone: map[string]bool{"dead": true}}
		attach(t, keeper(w), "dead", "lost", "held")
		k := keeper(w)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		synctest.Wait()
		if diff := cmp.Diff([]string{"lost", "held"}, w.ids()); diff != "" {
			t.Errorf("at first (-want +got)\n%s", diff)
		}
		if err := k.Resume("held"); err != nil {
			t.Error(err)
		}
		attach(t, k, "new")
		w.refusing(errors.New("not now"))
		time.Sleep(grace + 2*time.Second) //nolint:forbidigo // the bubble's clock
		synctest.Wait()
		w.refusing(nil)
		time.Sleep(2 * time.Second) //nolint:forbidigo // the bubble's clock
		synctest.Wait()
		if diff := cmp.Diff([]string{"held", "new"}, w.ids()); diff != "" {
			t.Errorf("after the grace (-want +got)\n%s", diff)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Nobody takes hold of an endpoint that is being removed, be it by its last
// holder or as an orphan; of one that could not be removed, somebody may.
func TestResumeWhileRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{gone: map[string]bool{"orphan": true}}
		attach(t, keeper(w), "orphan")
		k := keeper(w)
		attach(t, k, "released")
		w.refusing(errors.New("not now"))
		resumed := make(map[string]error)
		w.meanwhile = func(id string) { resumed[id] = k.Resume(id) }
		k.Release(t.Context(), "released")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		synctest.Wait()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, id := range []string{"orphan", "released"} {
			if err := resumed[id]; !errors.Is(err, programs.ErrUnknown) {
				t.Errorf("resuming %s while it was removed: %v", id, err)
			}
			if err := k.Resume(id); err != nil {
				t.Errorf("resuming %s, which could not be removed: %v", id, err)
			}
		}
	})
}
