package events

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeEngine answers from fields; its stream stays open and tells nothing.
type fakeEngine struct {
	identifyErr, listErr error
	list                 time.Duration // how long one takes
	noStream             bool          // /events is asked and stays silent
}

func (f *fakeEngine) identify(context.Context) (identity, error)  { return identity{}, f.identifyErr }
func (f *fakeEngine) networks(context.Context) ([]network, error) { return nil, f.listErr }
func (f *fakeEngine) close() error                                { return nil }
func (f *fakeEngine) inspect(context.Context, string) (network, map[string]attachment, error) {
	return network{}, nil, errGone
}

func (f *fakeEngine) imageLabels(context.Context, string) (map[string]string, error) {
	return nil, errGone
}

func (f *fakeEngine) driverOptions(context.Context, string) (map[string]map[string]string, error) {
	return nil, errGone
}

func (f *fakeEngine) containers(ctx context.Context, _ filter, _ ...string) ([]listed, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(f.list):
		return nil, nil
	}
}

func (f *fakeEngine) events(ctx context.Context, _ time.Time, started func(), _ func(event)) error {
	if !f.noStream {
		started()
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials []time.Duration
		start := time.Now()
		f := &fakeEngine{identifyErr: io.ErrUnexpectedEOF}
		w := New(Options{Host: "unix:///x"})
		w.dial = func(string) (engine, error) {
			dials = append(dials, time.Since(start))
			return f, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
		ms := time.Millisecond
		want := []time.Duration{0, 100 * ms, 300 * ms, 700 * ms, 1500 * ms, 3100 * ms, 5100 * ms, 7100 * ms}
		if diff := cmp.Diff(want, dials); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestFailedList gives the connection up, and its error is what is told.
func TestFailedList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(Options{Host: "unix:///x"})
		w.dial = func(string) (engine, error) { return &fakeEngine{listErr: errors.New("no list")}, nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
		if p := w.Problems(); len(p) != 1 || p[0].Text != "no list" {
			t.Errorf("problems %v", p)
		}
	})
}

func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lists := 0
		w := New(Options{Host: "unix:///x", Poke: func() { lists++ }})
		w.dial = func(string) (engine, error) { return &fakeEngine{list: time.Second}, nil }
		ctx, cancel := context.WithTimeout(t.Context(), 3*listSweep+listSweep/2)
		defer cancel()
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
		if lists != 4 { // the first one, and three
			t.Errorf("%d lists", lists)
		}
	})
}

// TestSilentStream gives up an engine that answers everything but /events.
func TestSilentStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(Options{Host: "unix:///x"})
		w.dial = func(string) (engine, error) { return &fakeEngine{noStream: true}, nil }
		ctx, cancel := context.WithTimeout(t.Context(), 2*identifyTimeout)
		defer cancel()
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
		if p := w.Problems(); w.Up() || len(p) != 1 || p[0].Text != "no answer from /events" {
			t.Errorf("problems %v", p)
		}
	})
}
