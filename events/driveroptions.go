package events

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"
)

// driverOptions remembers the eip.* driver options of endpoints on stock
// networks. Docker's lists do not tell them. What it says of a single container
// does, but not before the container's start is over; so a container is decided
// without them, asked about as soon as a list calls it running, and decided
// anew. An endpoint keeps the options that it was made with.
type driverOptions struct {
	mu     sync.Mutex
	known  map[string]map[string]string // by endpoint id; nil: it has none
	asking map[string]bool              // containers
}

func newDriverOptions() *driverOptions {
	return &driverOptions{known: make(map[string]map[string]string), asking: make(map[string]bool)}
}

// wanted lists containers that run and have an endpoint of which nothing is
// known, and takes note that they are being asked about.
func (o *driverOptions) wanted(v *View, running map[string]bool) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for _, e := range v.Endpoints {
		id := e.Container.ID
		if _, ok := o.known[e.ID]; ok || !running[id] || o.asking[id] {
			continue
		}
		o.asking[id] = true
		out = append(out, id)
	}
	return out
}

// told takes over an answer, and reports whether it says anything new, and
// whether there are options in it.
func (o *driverOptions) told(containerID string, answer map[string]map[string]string) (news, some bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.asking, containerID)
	for endpoint, options := range answer {
		_, known := o.known[endpoint]
		o.known[endpoint] = options
		news, some = news || !known, some || len(options) > 0
	}
	return news, some
}

// fill writes what is known into a view that is not shared yet, and forgets
// endpoints that a full list no longer has.
func (o *driverOptions) fill(v *View, full bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := make(map[string]map[string]string, len(v.Endpoints))
	for i, e := range v.Endpoints {
		options, ok := o.known[e.ID]
		if !ok {
			continue
		}
		known[e.ID] = options
		v.Endpoints[i].OptionsKnown = true
		if len(options) > 0 {
			v.Endpoints[i].Options = options
		}
	}
	if full {
		o.known = known
	}
}

// askOptions asks about running containers of which it is not known what their
// endpoints were given. It does not wait, but for the first view of all: the
// kernel may have pins by such options from an earlier run.
func (s *session) askOptions(ctx context.Context, v *View) {
	ids := s.options.wanted(v, s.running)
	if s.View() == nil {
		ctx, cancel := context.WithTimeout(ctx, optionsTimeout)
		defer cancel()
		var group errgroup.Group
		group.SetLimit(inspections)
		for _, id := range ids {
			group.Go(func() error {
				s.askContainer(ctx, id)
				return nil
			})
		}
		_ = group.Wait()
		return
	}
	for _, id := range ids {
		s.fast.workers.Go(func() {
			select {
			case s.inspecting <- struct{}{}:
			case <-ctx.Done():
				s.options.told(id, nil)
				return
			}
			news, some := s.askContainer(ctx, id)
			<-s.inspecting
			switch {
			case some:
				s.amend()
				s.urgent()
			case news: // on a strict network it may be waited for
				s.amend()
				s.poke()
			}
		})
	}
}

// askContainer asks about a container's endpoints, and reports what told does.
// What was not answered is asked again with the next list.
func (s *session) askContainer(ctx context.Context, id string) (news, some bool) {
	one, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	answer, err := s.eng.driverOptions(one, id)
	if err != nil {
		s.log.Debug("container not asked about", slog.String("container", id), slog.Any("err", err))
		if errors.Is(err, context.DeadlineExceeded) {
			s.mark()
		}
	}
	return s.options.told(id, answer)
}

// amend replaces the view by one with the options that came since.
func (s *session) amend() {
	s.fast.merge.Lock()
	v := s.View().clone()
	s.options.fill(v, false)
	s.mu.Lock()
	s.view = v
	s.mu.Unlock()
	s.fast.merge.Unlock()
}
