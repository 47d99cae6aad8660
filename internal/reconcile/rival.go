package reconcile

import (
	"cmp"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// A repair is a pass that wrote though nothing else was asked for than before:
// somebody undid what was there. That is mended at once, but whoever does it
// again and again is not raced: after burst repairs within the window there is
// one every interval, until a window has passed without any.
const (
	RivalBurst    = 10
	RivalWindow   = 10 * time.Second
	RivalInterval = time.Second
)

// writer is a part that can name what it wrote. Wrote returns what came since it was last asked.
type writer interface{ Wrote() []string }

// rivalry is what the loop knows of somebody who undoes what it does.
type rivalry struct {
	repairs []repair
	problem *model.Problem // while it lasts
}

type repair struct {
	at    time.Time
	wrote []string
}

// judge looks at a pass that has ended, and at what was wanted in the pass before.
func (l *Loop) judge(res, before *Result) {
	var wrote []string
	for _, part := range []any{l.o.Host, l.o.Router, l.o.Firewall, l.o.Forwarding} {
		if w, ok := part.(writer); ok {
			wrote = append(wrote, w.Wrote()...)
		}
	}
	r, now := &l.rival, time.Now()
	r.repairs = slices.DeleteFunc(r.repairs, func(r repair) bool { return now.Sub(r.at) >= RivalWindow })
	if res.Changed && before != nil && res.Err == nil && before.Err == nil && reflect.DeepEqual(res.Desired, before.Desired) {
		l.o.Log.Info("repaired", slog.Any("wrote", wrote))
		r.repairs = append(r.repairs, repair{now, wrote})
	}
	switch {
	case r.problem == nil && len(r.repairs) >= RivalBurst:
		r.problem = &model.Problem{
			Code: model.CodeContested, Severity: model.Failure, Subject: "host",
			Text: r.text(l.o.Culprit()),
			Fix:  fmt.Sprintf("find out who does it, and keep it from what is eipnet's; it is written again once every %v", RivalInterval),
		}
	case r.problem != nil && len(r.repairs) == 0:
		r.problem = nil
	}
	if r.problem != nil {
		res.Problems = append(res.Problems, *r.problem)
	}
}

// text says what vanished most often, and who is known to have done it.
func (r *rivalry) text(culprit string) string {
	times := make(map[string]int)
	var names []string
	for _, rep := range r.repairs {
		for _, what := range rep.wrote {
			if times[what]++; times[what] == 1 {
				names = append(names, what)
			}
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(times[b], times[a]) })
	const most = 3
	if more := len(names) - most; more > 0 {
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	text := fmt.Sprintf("somebody keeps undoing what eipnet writes, %d times within %v", len(r.repairs), RivalWindow)
	if len(names) > 0 {
		text += ": " + strings.Join(names, ", ")
	}
	if culprit != "" {
		text += "; last by " + culprit
	}
	return text
}

// pause is how long the loop waits at least until a pass that nobody waits for.
func (r *rivalry) pause() time.Duration {
	if r.problem != nil {
		return RivalInterval
	}
	return MinInterval
}
