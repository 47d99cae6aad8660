package health

import (
	"context"
	"log/slog"
	"time"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
)

// prober asks one NIC's question again and again.
type prober struct {
	key      key
	question Question // nil: nothing to ask
	cancel   context.CancelFunc
	first    chan struct{} // closed after the first answer, or none
	silent   error         // what is wrong; guarded by the tracker's lock, as is:
	unsure   bool          // silent is about the very first question alone
	trusted  bool          // one before it was answered: a first question without an answer says nothing
}

// asking reports whether nothing is known yet.
func (p *prober) asking() bool {
	if p == nil || p.question == nil {
		return false
	}
	select {
	case <-p.first:
		return false
	default:
		return true
	}
}

// answers reports whether the last that is known is an answer. Callers hold the lock.
func (p *prober) answers() bool {
	return p != nil && p.question != nil && !p.asking() && p.silent == nil
}

// probe starts a prober. Callers hold the lock.
func (t *Tracker) probe(n model.NIC, k key, trusted bool) *prober {
	ctx, cancel := context.WithCancel(context.Background())
	p := &prober{key: k, cancel: cancel, first: make(chan struct{}), trusted: trusted}
	question, err := t.o.Open(n, k.id)
	if err != nil {
		t.o.Log.Warn("NIC cannot be asked", slog.String("nic", n.Name), slog.Any("err", err))
	}
	if question == nil || err != nil {
		return p
	}
	p.question = question
	t.wg.Go(func() {
		defer question.Close()
		t.run(ctx, p)
	})
	return p
}

func (t *Tracker) run(ctx context.Context, p *prober) {
	// A NIC that has never answered has no credit: after a restart of the daemon
	// a container must not go back to a NIC that is dead.
	for missed, n := 0, 0; ; n++ {
		begun := time.Now()
		err := p.ask(ctx, t.o.Interval/2)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			missed = 0
		} else {
			missed++
		}
		t.mu.Lock()
		before, wasUnsure := p.silent, p.unsure
		switch {
		case err == nil:
			p.silent = nil
		case missed > tolerated:
			p.silent, p.unsure = err, false
		case n == 0 && !p.trusted:
			p.silent, p.unsure = err, true
		}
		changed := (before == nil) != (p.silent == nil) || wasUnsure && !p.unsure
		sure := err == nil || missed > tolerated
		t.mu.Unlock()
		if n == 0 {
			close(p.first)
		}
		if changed || n == 0 {
			t.o.Poke()
		}
		if sure && !delay.For(ctx, time.Until(begun.Add(t.o.Interval))) {
			return
		}
	}
}

func (p *prober) ask(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := p.question.Ask(ctx)
	if err != nil { // an early refusal is no reason to ask in a hurry
		<-ctx.Done()
	}
	return err
}
