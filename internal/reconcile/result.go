package reconcile

import (
	"errors"
	"slices"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// Result is what a pass found and did.
type Result struct {
	At        time.Time
	Took      time.Duration
	Host      model.Host
	Networks  []model.Network
	Endpoints []model.Endpoint
	Strays    []model.Stray
	Beside    []model.Beside
	Desired   plan.Desired
	snapshot  plan.Snapshot // that Desired was computed from
	Problems  []model.Problem
	// Published are those of Desired.Ports that are reserved.
	Published []plan.Port
	// PortErrors holds, by endpoint, why its published ports are not reserved.
	PortErrors map[string]error
	Changed    bool
	table      bool // the firewall was changed
	// Seen: Docker had told what exists; complete: all of that is known.
	Seen, complete bool
	// Err is why nothing can be relied on: the host could not be seen, the
	// state not written, lock or firewall not applied.
	Err error
	// Partial are failures of single objects; the rest of the pass stands.
	Partial []error
}

// failedOver tells where containers have failed over to.
func (r *Result) failedOver() map[string]plan.Stay {
	out := make(map[string]plan.Stay)
	for i, p := range r.Desired.Pins {
		if id := r.Endpoints[i].Container.ID; id != "" && p.State == plan.StatePinned && p.InsteadOf != "" {
			out[id] = plan.Stay{Selector: p.Selector, From: p.From, NIC: p.NIC}
		}
	}
	for _, p := range r.Desired.HostPins {
		if p.State == plan.StatePinned && p.InsteadOf != "" {
			out[p.Container.ID] = plan.Stay{Selector: p.Selector, From: p.From, NIC: p.NIC}
		}
	}
	return out
}

// Health is what is known of a watched NIC.
func (r *Result) Health(nic string) model.Health { return r.snapshot.Health[nic] }

func (r *Result) hard(err error) { r.Err = errors.Join(r.Err, err) }

func (r *Result) partial(err error) {
	if err != nil {
		r.Partial = append(r.Partial, err)
	}
}

// routing files an error of the router. A route whose device is missing or down
// leaves its destination unreachable, which fails closed; any other means that
// lock 1 may not stand.
func (r *Result) routing(err error, device []error) {
	harmless := err != nil
	for _, leaf := range leaves(err) {
		harmless = harmless && slices.ContainsFunc(device, func(d error) bool { return errors.Is(leaf, d) })
	}
	if harmless {
		r.partial(err)
		return
	}
	r.hard(err)
}

// errorFor returns why a caller who depends on the subjects (bridges' names) cannot rely on the pass.
func (r *Result) errorFor(subjects []string) error {
	errs := []error{r.Err}
	for _, err := range r.Partial {
		for _, leaf := range leaves(err) {
			var s interface{ Subject() string }
			if errors.As(leaf, &s) && slices.Contains(subjects, s.Subject()) {
				errs = append(errs, leaf)
			}
		}
	}
	return errors.Join(errs...)
}

// leaves lists the errors that were joined into one, in their order.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, leaves(e)...)
		}
		return out
	}
	return []error{err}
}
