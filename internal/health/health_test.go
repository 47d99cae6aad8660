package health_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/health"
	"github.com/eipnet/eipnet/internal/model"
)

// lan is a host with eth1, and whether its gateway answers.
type lan struct {
	t       *testing.T
	tracker *health.Tracker
	host    model.Host

	dead         atomic.Bool
	asked, pokes atomic.Int64
}

var errDead = errors.New("gets no answer from its gateway")

func (l *lan) Ask(ctx context.Context) error {
	l.asked.Add(1)
	if !l.dead.Load() {
		return nil
	}
	<-ctx.Done()
	return errDead
}

func (l *lan) Close() {}

func newLAN(t *testing.T, dead bool) *lan {
	l := &lan{t: t, host: model.Host{NICs: []model.NIC{{
		Name: "eth1", Index: 3, MAC: "02:31:00:00:00:0e", Up: true, Carrier: true,
		Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.14/20")}, Gateway4: model.Gateway{Addr: netip.MustParseAddr("172.31.0.1")},
	}}}}
	l.dead.Store(dead)
	l.tracker = health.New(health.Options{
		Log: slog.New(slog.DiscardHandler), Interval: time.Second,
		Poke: func() { l.pokes.Add(1) },
		Open: func(model.NIC, model.NICID) (health.Question, error) { return l, nil },
	})
	t.Cleanup(l.tracker.Close)
	return l
}

// look is what a pass does, now.
func (l *lan) look() model.Health {
	l.t.Helper()
	synctest.Wait()
	out := l.tracker.Look(l.t.Context(), l.host, nil, []string{"eth1"})
	return out["eth1"]
}

func (l *lan) want(state model.HealthState) {
	l.t.Helper()
	if got := l.look(); got.State != state {
		l.t.Errorf("%v (%s), want %v", got.State, got.Why, state)
	}
}

// after lets time pass in steps, with a look at each, as pokes would cause them.
func (l *lan) after(d time.Duration) {
	const step = 50 * time.Millisecond
	for ; d > 0; d -= step {
		time.Sleep(step) //nolint:forbidigo // synctest's clock
		l.look()
	}
}

// poked lets time pass with a look only where one was asked for.
func (l *lan) poked(d time.Duration) {
	const step = 50 * time.Millisecond
	for before := l.pokes.Load(); d > 0; d -= step {
		time.Sleep(step) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if now := l.pokes.Load(); now != before {
			before = now
			l.look()
		}
	}
}

func TestADeadGatewayIsNoticedWithinThreeIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, false)
		l.want(model.Healthy)
		l.after(10*time.Second + 10*time.Millisecond)
		l.want(model.Healthy)
		before := l.pokes.Load()
		l.dead.Store(true)
		begin := time.Now()
		for l.pokes.Load() == before {
			time.Sleep(10 * time.Millisecond) //nolint:forbidigo // synctest's clock
			synctest.Wait()
		}
		if took := time.Since(begin); took > 2600*time.Millisecond {
			t.Errorf("noticed after %v", took)
		}
		if h := l.look(); h.State != model.Failed || h.Why != errDead.Error() {
			t.Errorf("%v", h)
		}
	})
}

// Two lost questions are no dead gateway.
func TestHysteresis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, false)
		l.want(model.Healthy)
		for range 5 {
			l.dead.Store(true)
			l.after(900 * time.Millisecond) // the time of one question or two
			l.dead.Store(false)
			l.after(2 * time.Second)
			l.want(model.Healthy)
		}
	})
}

// A NIC that has never answered is taken for dead; but that its first question
// got lost is soon forgotten.
func TestFirstQuestionGetsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, true)
		l.want(model.Failed)
		l.dead.Store(false)
		l.after(time.Second)
		l.want(model.Healthy)

		l = newLAN(t, true)
		l.want(model.Failed)
		l.poked(3 * time.Second)
		l.dead.Store(false)
		l.poked(2 * time.Second)
		l.want(model.Recovering)
	})
}

// A daemon that starts while the gateway is dead knows it in its first look.
func TestFirstLookWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, true)
		begin := time.Now()
		l.want(model.Failed)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the first look took %v", took)
		}
		begin = time.Now()
		l.want(model.Failed)
		if took := time.Since(begin); took > 0 {
			t.Errorf("the second look took %v", took)
		}
	})
}

// However seldom NICs are asked, who looks waits a second at most.
func TestLookIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, true)
		l.tracker = health.New(health.Options{
			Log: slog.New(slog.DiscardHandler), Interval: time.Minute,
			Open: func(model.NIC, model.NICID) (health.Question, error) { return l, nil },
		})
		t.Cleanup(l.tracker.Close)
		began := time.Now()
		l.look()
		if took := time.Since(began); took > time.Second {
			t.Errorf("waited %v", took)
		}
	})
}

// A NIC that works and gets another address is not failed for one lost
// question, nor waited for; if it does not answer any more, that is noticed as ever.
func TestAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, false)
		l.want(model.Healthy)
		for _, addr := range []string{"172.31.0.15/20", "172.31.0.16/20"} {
			l.after(2 * time.Second)
			l.host.NICs = slices.Clone(l.host.NICs)
			l.host.NICs[0].Addrs = []netip.Prefix{netip.MustParsePrefix(addr)}
			l.dead.Store(true)
			began := time.Now()
			l.want(model.Healthy)
			if took := time.Since(began); took > 0 {
				t.Errorf("waited %v", took)
			}
			l.after(400 * time.Millisecond)
			l.dead.Store(false)
			l.want(model.Healthy)
		}
		l.after(2 * time.Second)
		l.host.NICs = slices.Clone(l.host.NICs)
		l.host.NICs[0].Addrs = []netip.Prefix{netip.MustParsePrefix("172.31.0.17/20")}
		l.dead.Store(true)
		l.after(3 * time.Second)
		l.want(model.Failed)
	})
}

func TestLinkLossCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, false)
		for name, change := range map[string]func(*model.Host){
			"carrier": func(h *model.Host) { h.NICs[0].Carrier = false },
			"down":    func(h *model.Host) { h.NICs[0].Up = false },
			"gone":    func(h *model.Host) { h.NICs = nil },
		} {
			l.want(model.Healthy)
			was := l.host
			l.host.NICs = append([]model.NIC(nil), was.NICs...)
			change(&l.host)
			begin := time.Now()
			l.want(model.Failed)
			if took := time.Since(begin); took > 0 {
				t.Errorf("%s: took %v", name, took)
			}
			l.host = was
			l.look() // its prober has to find out first
			l.want(model.Recovering)
			l.after(time.Hour)
			l.want(model.Healthy)
		}
	})
}

// TestFlapping: each time a NIC fails soon after it was trusted, it has to work
// for twice as long.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, false)
		l.want(model.Healthy)
		var took []time.Duration
		flap := func() {
			l.host.NICs[0].Carrier = false
			l.want(model.Failed)
			l.host.NICs[0].Carrier = true
			l.look()
			begin := time.Now()
			for l.look().State != model.Healthy {
				l.after(100 * time.Millisecond)
			}
			took = append(took, time.Since(begin).Round(time.Second))
		}
		for range 8 {
			flap()
		}
		l.after(11 * time.Minute)
		flap()
		for i, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300, 5} {
			if took[i] != want*time.Second {
				t.Errorf("trusted after %v, want %vs at %d", took, int(want), i)
			}
		}
	})
}

// What is watched no more is not asked.
func TestUnwatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, false)
		l.want(model.Healthy)
		if got := l.tracker.Look(t.Context(), l.host, nil, nil); len(got) > 0 {
			t.Errorf("tells %v", got)
		}
		before := l.asked.Load()
		time.Sleep(time.Minute) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if asked := l.asked.Load() - before; asked != 0 {
			t.Errorf("asked %d times", asked)
		}
	})
}
