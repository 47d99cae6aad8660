package reconcile_test

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// TestForwardingHangs: an iptables that hangs holds up half a second of a pass, and once.
func TestForwardingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker, w.wedged = map[string]model.Container{}, make(chan struct{})
		l := start(t, w)
		began := time.Now()
		for range 10 {
			if err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		wait(reconcile.MinInterval)
		if took := time.Since(began); took > time.Second || w.read(&w.forwardings) != 1 {
			t.Errorf("ten passes took %v, and iptables was run %d times", took, w.read(&w.forwardings))
		}
		close(w.wedged)
		wait(reconcile.MinInterval)
		if synctest.Wait(); w.accepts() != 1 {
			t.Errorf("accepts for %v", w.bridges)
		}
	})
}

// TestForwardingFails: iptables that fails is tried again less and less often,
// however many passes there are, and told as a problem meanwhile.
func TestForwardingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker, w.noForwarding = map[string]model.Container{}, errors.New("the xtables lock is held")
		l := start(t, w)
		for range 600 {
			l.Poke()
			wait(100 * time.Millisecond)
		}
		synctest.Wait()
		if w.read(&w.forwardings) > 8 {
			t.Errorf("tried %d times in a minute", w.read(&w.forwardings))
		}
		if res, err := l.Last(t.Context()); err != nil || len(res.Partial) != 1 {
			t.Errorf("%v, failures %v", err, res.Partial)
		}
		w.do(func() { w.noForwarding = nil })
		wait(reconcile.MaxInterval)
		synctest.Wait()
		if res, err := l.Last(t.Context()); err != nil || len(res.Partial) != 0 || w.accepts() != 1 {
			t.Errorf("%v, failures %v, accepts for %v", err, res.Partial, w.bridges)
		}
	})
}

// twice has the accepts taken away twice. What was mended is looked at once more
// 200 ms later, as the loop hears of its own change, and may be mended again 200 ms after that.
func twice(t *testing.T, w *world, l *reconcile.Loop) {
	t.Helper()
	for range 2 {
		w.do(func() { w.bridges = nil })
		l.PokeForwarding()
		wait(150 * time.Millisecond)
		if synctest.Wait(); w.accepts() != 1 {
			t.Error("not mended within 150 ms")
		}
		wait(200 * time.Millisecond)
	}
}

// hearing is a world in which the loop hears of its own changes, and is quiet.
func hearing(t *testing.T) (*world, *reconcile.Loop) {
	t.Helper()
	w := newWorld()
	w.docker = map[string]model.Container{}
	l := start(t, w)
	w.do(func() { w.heard = l.PokeForwarding })
	wait(10 * reconcile.RetryInterval)
	return w, l
}

// TestOwnChangesMakeNoneWait: a change that comes soon after another was mended
// is mended, too, without anything else that wakes the loop.
func TestOwnChangesMakeNoneWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := hearing(t)
		twice(t, w, l)
		w.do(func() { w.bridges = nil })
		l.PokeForwarding()
		wait(2 * reconcile.RetryInterval)
		if synctest.Wait(); w.accepts() != 1 {
			t.Error("what was changed within the pause is not mended")
		}
	})
}

// TestOthersOwnChanges: who changes the chain again and again, and nothing of
// ours, has iptables run less and less often, until it is quiet for a while.
func TestOthersOwnChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := hearing(t)
		before := w.read(&w.forwardings)
		for range 100 { // ten seconds
			l.PokeForwarding()
			wait(100 * time.Millisecond)
		}
		if n := w.read(&w.forwardings) - before; n < 10 || n > 15 {
			t.Errorf("iptables ran %d times in ten seconds", n)
		}
		wait(10 * reconcile.RetryInterval)
		twice(t, w, l)
	})
}

// TestForwardingFailsNoMore: after failures a change of the chain, or of our
// bridges, does not wait for the next try.
func TestForwardingFailsNoMore(t *testing.T) {
	for name, change := range map[string]func(*world, *reconcile.Loop){
		"a change of the chain": func(_ *world, l *reconcile.Loop) { l.PokeForwarding() },
		"another bridge": func(w *world, l *reconcile.Loop) {
			w.do(func() { w.networks[0].Bridge = "eip_other" })
			l.Poke()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.docker, w.noForwarding = map[string]model.Container{}, errors.New("no such match")
				l := start(t, w)
				wait(20 * reconcile.RetryInterval)
				w.do(func() { w.noForwarding = nil })
				change(w, l)
				wait(reconcile.RetryInterval)
				if synctest.Wait(); w.accepts() != 1 {
					t.Errorf("accepts for %v", w.bridges)
				}
			})
		})
	}
}

// TestPublishedOnAllAddresses: flows to the host's own addresses are forgotten,
// and nobody's to that port elsewhere.
func TestPublishedOnAllAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{"a": {Known: true, Name: "a"}}
		w.host.Locals = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("172.31.0.8"), netip.MustParseAddr("2001:db8::8")}
		w.endpoint("a", false)
		l := start(t, w)
		w.do(func() {
			e := w.endpoints["a"]
			e.Options, e.Container = nil, model.Container{Known: true, Name: "a"}
			e.Publishes = []model.Publish{{Proto: model.UDP, HostPort: 53, Port: 53}}
			w.endpoints["a"] = e
		})
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, f := range w.flushed {
			if f.Addr().IsUnspecified() {
				t.Errorf("flushed %v", f)
			}
		}
		if len(w.flushed) != 2 {
			t.Errorf("flushed %v, want both of the host's IPv4 addresses", w.flushed)
		}
	})
}
