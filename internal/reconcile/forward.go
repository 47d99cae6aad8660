package reconcile

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// forwardPatience is how long a pass waits for Forwarding, which runs iptables:
// that waits for a lock that others may have, or hangs. The rest is done beside the loop.
const forwardPatience = 500 * time.Millisecond

// forwardPause is the least time between two runs, unless our bridges changed. As
// long as others change the chain again and again it grows up to the retry interval.
const forwardPause = 200 * time.Millisecond

// accepting is what the loop knows of the accepts in Docker's chain.
type accepting struct {
	reason  atomic.Bool    // somebody changed the chain
	bridges string         // of the last time that it was begun
	looked  time.Time      // when it was last begun
	next    time.Time      // when it is begun again
	pause   time.Duration  // from looked on, until it is begun for a reason
	backoff time.Duration  // after a failure
	changed bool           // the last run found something to do
	running chan forwarded // nil: it does not run
	failed  error
}

// forwarded is what became of it.
type forwarded struct {
	out ForwardingOutcome
	err error
}

// hear has a change of the chain looked at, with a pause between. It returns how
// long that is from now.
func (a *accepting) hear(now time.Time) time.Duration {
	if next := a.looked.Add(a.pause); next.Before(a.next) {
		a.next = next
	}
	return a.next.Sub(now)
}

// take remembers what became of it: it is begun again in a sweep; in the next pass
// where there is no chain yet, as Docker starts later; and after a failure less and
// less often. What we did ourselves is heard of, too, and makes nothing wait longer.
func (a *accepting) take(f forwarded) {
	a.running, a.failed = nil, f.err
	switch {
	case f.err != nil:
		a.backoff = min(max(2*a.backoff, RetryInterval), MaxInterval)
		a.next, a.pause = a.looked.Add(a.backoff), RetryInterval
		return
	case f.out.Absent:
		a.next = a.looked
	default:
		a.next = a.looked.Add(MaxInterval)
	}
	if a.pause = min(max(2*a.pause, forwardPause), RetryInterval); a.changed && !f.out.Changed {
		a.pause = forwardPause
	}
	a.backoff, a.changed = 0, f.out.Changed
}

// forward keeps our accepts in DOCKER-USER. It returns what is known of them by
// now; what is known later pokes.
func (l *Loop) forward(ctx context.Context, bridges []string) (changed bool, err error) {
	a := &l.accepts
	select {
	case f := <-a.running: // of a pass before
		a.take(f)
		changed = f.out.Changed
	default:
	}
	key, now := strings.Join(bridges, " "), time.Now()
	if now.Sub(a.looked) > 5*RetryInterval {
		a.pause = 0 // all was quiet
	}
	if a.running == nil && a.reason.Swap(false) {
		if wait := a.hear(now); wait > 0 {
			time.AfterFunc(wait, l.Poke)
		}
	}
	if a.running == nil && (a.bridges != key || !now.Before(a.next)) {
		a.looked, a.bridges, a.running = now, key, make(chan forwarded, 1)
		go func(done chan<- forwarded) {
			out, err := l.o.Forwarding.Apply(ctx, bridges)
			done <- forwarded{out, err}
		}(a.running)
		timer := time.NewTimer(forwardPatience)
		defer timer.Stop()
		select {
		case f := <-a.running:
			a.take(f)
			changed = changed || f.out.Changed
		case <-timer.C:
			a.running = l.told(a.running)
		}
	}
	if a.failed != nil {
		err = fmt.Errorf("applying DOCKER-USER: %w", a.failed)
	}
	return changed, err
}

// told passes an outcome on, and pokes.
func (l *Loop) told(from <-chan forwarded) chan forwarded {
	to := make(chan forwarded, 1)
	go func() {
		to <- <-from
		l.Poke()
	}()
	return to
}
