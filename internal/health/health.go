// Package health tells whether a NIC's way to the world works: its link, whether
// its gateway answers ARP or ND, and, where the administrator names any, whether
// one of some targets answers through it.
//
// A NIC that fails is failed at once. It is trusted again only when it has
// worked for a while, and for longer each time if it fails again soon after. One
// that leaves just the very first question unanswered is trusted with its next answer.
package health

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// DefaultInterval is the time between two questions to a NIC's gateway.
const DefaultInterval = time.Second

const (
	// tolerated is how many questions in a row may stay unanswered. A question is
	// given half an interval, and after an unanswered one the next follows at
	// once: a dead gateway is noticed within 2.5 intervals.
	tolerated = 2
	// trustAfter intervals of good answers in a row a failed NIC is trusted again.
	trustAfter = 5
	// A NIC that fails within flapWindow of being trusted has to work for twice
	// as long the next time, trustMax at most.
	flapWindow = 10 * time.Minute
	trustMax   = 5 * time.Minute
)

// Question asks, in one way, whether a NIC's way to the world works. A nil error
// says yes; else the error's text says what is wrong with the NIC.
type Question interface {
	Ask(ctx context.Context) error
	Close()
}

// Options are a Tracker's settings. Log is required.
type Options struct {
	Log      *slog.Logger
	Interval time.Duration // 0: DefaultInterval
	Targets  []Target
	Mask     model.Mask // of the marks that lead by a NIC
	Poke     func()     // called when something changed; must not block
	// Open makes the question for a NIC, and nil where there is nothing to ask.
	// Nil: gateway and targets. It is called in Look.
	Open func(nic model.NIC, id model.NICID) (Question, error)
}

// Tracker watches NICs. Look is for one goroutine at a time.
type Tracker struct {
	o Options

	mu   sync.Mutex // of what nics hold; probers write there
	nics map[string]*nic
	wg   sync.WaitGroup
}

// New returns a Tracker that watches nothing yet.
func New(o Options) *Tracker {
	if o.Interval == 0 {
		o.Interval = DefaultInterval
	}
	if o.Poke == nil {
		o.Poke = func() {}
	}
	t := &Tracker{o: o, nics: make(map[string]*nic)}
	if t.o.Open == nil {
		t.o.Open = t.open
	}
	return t
}

// nic is what is known of one NIC.
type nic struct {
	failed    bool
	unsure    bool // failed, by nothing but a first question without an answer
	why       string
	goodSince time.Time     // of a failed one: when it began to work again
	trusted   time.Time     // when it was last trusted again
	trust     time.Duration // how long it has to work next time
	wake      *time.Timer   // pokes when it may be trusted

	prober *prober
}

// key is what a prober depends on; another key needs another prober.
type key struct {
	index             int
	addr4, addr6      netip.Addr
	gateway, gateway6 netip.Addr
	id                model.NICID
}

func keyOf(n model.NIC, id model.NICID) key {
	k := key{index: n.Index, gateway: n.Gateway4.Addr, gateway6: n.Gateway6.Addr, id: id}
	k.addr4, _ = n.Addr(model.IPv4)
	k.addr6, _ = n.Addr(model.IPv6)
	return k
}

// Look judges the NICs to be watched, which need not be there, by what the host
// looks like now and by what probers found. A NIC that is new waits for its
// first answer, less than an interval and a second at most. NICs that are watched no more are not
// asked; what is known of them is kept.
func (t *Tracker) Look(ctx context.Context, host model.Host, ids map[string]model.NICID, watch []string) map[string]model.Health {
	var fresh []*prober
	t.mu.Lock()
	for _, name := range watch {
		if t.nics[name] == nil {
			t.nics[name] = &nic{trust: trustAfter * t.o.Interval}
		}
	}
	for name, rec := range t.nics {
		n, there := host.NIC(name)
		wanted := there && n.Up && n.Carrier && slices.Contains(watch, name)
		k := keyOf(n, ids[name])
		// A NIC that works and gets another address or gateway goes on working until it does not answer.
		trusted := wanted && !rec.failed && rec.prober.answers()
		if rec.prober != nil && (!wanted || rec.prober.key != k) {
			rec.prober.cancel()
			rec.prober = nil
		}
		if wanted && rec.prober == nil {
			if rec.prober = t.probe(n, k, trusted); rec.prober.question != nil && !rec.failed && !trusted {
				fresh = append(fresh, rec.prober)
			}
		}
	}
	t.mu.Unlock()
	t.await(ctx, fresh)

	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	out := make(map[string]model.Health)
	for name, rec := range t.nics {
		n, there := host.NIC(name)
		reason := "is not there"
		if there {
			reason = n.Fitness(rec.probed()).Why
		}
		if reason != "" || !rec.failed || !rec.prober.asking() {
			t.judge(name, rec, reason, now)
		}
		if slices.Contains(watch, name) {
			out[name] = rec.health()
		}
	}
	return out
}

// maxAwait bounds how long Look waits: who calls it has others waiting.
const maxAwait = time.Second

// await waits for first answers.
func (t *Tracker) await(ctx context.Context, fresh []*prober) {
	if len(fresh) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(t.o.Interval*3/4, maxAwait))
	defer cancel()
	for _, p := range fresh {
		select {
		case <-p.first:
		case <-ctx.Done():
		}
	}
}

// judge takes in what is wrong with the NIC now; empty: nothing.
func (t *Tracker) judge(name string, rec *nic, reason string, now time.Time) {
	switch {
	case reason != "":
		if !rec.failed {
			if !rec.trusted.IsZero() && now.Sub(rec.trusted) < flapWindow {
				rec.trust = min(2*rec.trust, trustMax)
			} else {
				rec.trust = trustAfter * t.o.Interval
			}
			t.o.Log.Warn("NIC failed", slog.String("nic", name), slog.String("why", reason))
		}
		first := !rec.failed && rec.prober != nil && rec.prober.unsure && rec.probed().Why == reason
		rec.unsure = first || rec.unsure && rec.prober != nil && rec.prober.unsure
		rec.failed, rec.why, rec.goodSince = true, reason, time.Time{}
		rec.sleep()
	case !rec.failed:
	case rec.unsure && rec.prober != nil && rec.prober.unsure: // just the first question got lost
		rec.failed, rec.unsure, rec.why = false, false, ""
		t.o.Log.Info("NIC works", slog.String("nic", name))
	case rec.goodSince.IsZero():
		rec.goodSince, rec.why = now, fmt.Sprintf("works again, and has to do so for %v to be trusted", rec.trust)
		rec.wake = time.AfterFunc(rec.trust, t.o.Poke)
	case now.Sub(rec.goodSince) >= rec.trust:
		rec.failed, rec.why, rec.trusted = false, "", now
		t.o.Log.Info("NIC works again", slog.String("nic", name), slog.Duration("after", now.Sub(rec.goodSince)))
	}
}

func (n *nic) sleep() {
	if n.wake != nil {
		n.wake.Stop()
		n.wake = nil
	}
}

func (n *nic) health() model.Health {
	switch {
	case !n.failed:
		return model.Health{}
	case n.goodSince.IsZero():
		return model.Health{State: model.Failed, Why: n.why}
	}
	return model.Health{State: model.Recovering, Why: n.why}
}

// probed is what the prober found. Callers hold the tracker's lock.
func (n *nic) probed() model.Health {
	if n.prober == nil || n.prober.silent == nil {
		return model.Health{}
	}
	return model.Health{State: model.Failed, Why: n.prober.silent.Error()}
}

// Close ends all probing.
func (t *Tracker) Close() {
	t.mu.Lock()
	for _, rec := range t.nics {
		rec.sleep()
		if rec.prober != nil {
			rec.prober.cancel()
			rec.prober = nil
		}
	}
	t.mu.Unlock()
	t.wg.Wait()
}
