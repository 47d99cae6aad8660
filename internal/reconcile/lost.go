package reconcile

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// stateLost is told until the daemon is started with a state that it knows.
var stateLost = model.Problem{
	Code: model.CodeStateLost, Severity: model.Warning, Subject: "state file",
	Text: "it was lost or damaged while something was pinned: what eipnet rebind and eipnet host add had said may be forgotten",
	Fix:  "look where containers leave now, say again what is missing, and restart eipnet",
}

// unknown are the endpoints that the kernel had pinned when the state was lost,
// as far as that is not remembered: a rebind may have said so. They are told
// apart when Docker has told what exists, and before anything of it is applied.
func (l *Loop) unknown(endpoints []model.Endpoint, seen bool) map[string]bool {
	if !l.forgot || !seen || l.lost != nil {
		return l.lost
	}
	l.lost = make(map[string]bool)
	for _, e := range endpoints {
		if e.Container.ID != "" && (l.inherited[e.Addr4] || l.inherited[e.Addr6]) {
			l.lost[e.ID] = true
		}
	}
	return l.lost
}

// rememberLost persists which endpoints are held as nobody knows where they were
// rebound to: another daemon finds nothing of that in the kernel.
func (l *Loop) rememberLost(res *Result) error {
	if len(l.lost) == 0 || !l.rebinding.TryLock() {
		return nil // who rebinds waits for this pass: the next one does it
	}
	defer l.rebinding.Unlock()
	var errs []error
	left := maps.Clone(l.lost) // snapshots share it
	for i, p := range res.Desired.Pins {
		e := res.Endpoints[i]
		if !p.Lost || !l.lost[e.ID] {
			continue
		}
		r, _ := l.rebindOf(e.Container.ID)
		if len(r.Options) == 0 && !slices.Contains(r.Lost, e.ID) {
			r.ContainerID, r.Name, r.Lost = e.Container.ID, e.Container.Name, append(r.Lost, e.ID)
			if err := l.o.Store.PutRebind(r); err != nil {
				errs = append(errs, fmt.Errorf("remembering that %s is held: %w", e.Name(), err))
				continue
			}
		}
		delete(left, e.ID)
	}
	l.lost = left
	return errors.Join(errs...)
}
