package reconcile_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// undo takes a rule away and tells the loop, as a rival does.
func (w *world) undo(l *reconcile.Loop) {
	w.do(func() { w.routing = plan.Routing{} })
	l.Poke()
}

// contested returns the problem that names the rival.
func contested(t *testing.T, l *reconcile.Loop) (found []model.Problem) {
	t.Helper()
	res, err := l.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Problems {
		if p.Code == model.CodeContested {
			found = append(found, p)
		}
	}
	return found
}

// TestRival: what is undone is mended at once, but nobody is raced for ever.
func TestRival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		l := start(t, w)
		wait := func(d time.Duration) {
			time.Sleep(d) //nolint:forbidigo // synctest's clock
			synctest.Wait()
		}
		mended := func() (yes bool) {
			w.do(func() { yes = len(w.routing.Rules) > 0 })
			return yes
		}
		written := func() (n int) {
			w.do(func() { n = w.writes })
			return n
		}

		wait(reconcile.MinInterval)
		w.undo(l)
		wait(0)
		if !mended() || len(contested(t, l)) > 0 {
			t.Errorf("after one time: mended %v, problems %v", mended(), contested(t, l))
		}
		writes := written()
		for range 600 { // one minute
			w.undo(l)
			wait(100 * time.Millisecond)
		}
		problems := contested(t, l)
		if len(problems) != 1 || problems[0].Text != "somebody keeps undoing what eipnet writes, 10 times within 10s: rule 1, rule 2; last by process vandal" {
			t.Errorf("problems %+v", problems)
		}
		if n := written() - writes; n < 60 || n > 75 {
			t.Errorf("%d repairs in a minute against a rival, want one a second after the first ten", n)
		}
		wait(reconcile.RivalInterval)
		if !mended() {
			t.Error("not mended within the interval after the last time")
		}
		wait(2 * reconcile.RivalWindow)
		if len(contested(t, l)) > 0 {
			t.Error("the problem stays though nobody undoes anything")
		}
		w.undo(l)
		wait(0)
		if !mended() {
			t.Error("not mended at once after the rival is gone")
		}
	})
}

// TestChangesAreNoRival: what is asked for anew is no repair.
func TestChangesAreNoRival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		l := start(t, w)
		for i := range 100 {
			w.endpoint("a", i%2 == 0)
			l.Poke()
			time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
		}
		synctest.Wait()
		if w.read(&w.writes) < 50 || len(contested(t, l)) > 0 {
			t.Errorf("%d writes, problems %v", w.read(&w.writes), contested(t, l))
		}
	})
}

// TestAcceptsAreLookedAfter: a change of Docker's chain is mended at once, and
// iptables runs less and less often when it is changed again and again.
func TestAcceptsAreLookedAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		l := start(t, w)
		time.Sleep(reconcile.RetryInterval) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		w.do(func() { w.bridges = nil })
		before := w.read(&w.forwardings)
		l.PokeForwarding()
		synctest.Wait()
		if w.accepts() != 1 {
			t.Error("the accepts were not made again")
		}
		for range 30 { // three seconds
			w.do(func() { w.bridges = nil })
			l.PokeForwarding()
			time.Sleep(reconcile.RetryInterval / 10) //nolint:forbidigo // synctest's clock
		}
		time.Sleep(reconcile.RetryInterval) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if n := w.read(&w.forwardings) - before; n < 4 || n > 9 {
			t.Errorf("iptables ran %d times in four seconds", n)
		}
		if w.accepts() != 1 {
			t.Error("the last change was not mended")
		}
	})
}
