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

// forwardPause is the least time between two runs for a reason. As long as others
// change the chain again and again it grows up to the retry interval.
const forwardPause = 200 * time.Millisecond

// accepting is what the loop knows of the accepts in Docker's chain.
type accepting struct {
	reason  atomic.Bool    // somebody changed the chain
	bridges string         // of the last time that it was done
	looked  time.Time      // when it was last begun
	pause   time.Duration  // from then on, until it is begun for a reason
	next    time.Time      // when it is begun again without a reason
	running chan forwarded // nil: it does not run
	failed  error
	retry   time.Duration // after a failure
}

// forwarded is what became of it.
type forwarded struct {
	bridges string
	out     ForwardingOutcome
	err     error
}

// due reports whether it has to be looked at: when our bridges changed, in a
// sweep, when the chain was changed (with a pause between), as long as it was not
// done (where eipnet starts before Docker, the chain comes later), and after a
// failure less and less often.
func (a *accepting) due(bridges string, now time.Time) bool {
	if a.reason.Swap(false) {
		if now.Sub(a.looked) > 5*RetryInterval {
			a.pause = 0
		}
		if next := a.looked.Add(a.pause); next.Before(a.next) {
			a.next = next
		}
	}
	if a.failed != nil {
		return !now.Before(a.looked.Add(a.retry))
	}
	return a.bridges != bridges || !now.Before(a.next)
}

// take remembers what became of it. What finds nothing to do, as it was
// our own change that was heard of, makes no later one wait.
func (a *accepting) take(f forwarded) {
	a.running, a.failed = nil, f.err
	switch {
	case f.err != nil:
		a.retry = min(max(2*a.retry, RetryInterval), MaxInterval)
		return
	case !f.out.Absent:
		a.bridges, a.next = f.bridges, a.looked.Add(MaxInterval)
	}
	a.retry = 0
	if f.out.Changed {
		a.pause = min(max(2*a.pause, forwardPause), RetryInterval)
	} else {
		a.pause = forwardPause
	}
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
	if a.running == nil && a.due(key, now) {
		a.looked, a.running = now, make(chan forwarded, 1)
		go func(done chan<- forwarded) {
			out, err := l.o.Forwarding.Apply(ctx, bridges)
			done <- forwarded{key, out, err}
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
