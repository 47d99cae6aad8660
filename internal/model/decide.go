package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Level is where a selector was written.
type Level string

// The levels, most specific first.
const (
	FromRebind   Level = "rebind"
	FromEndpoint Level = "endpoint option"
	FromLabel    Level = "label"
	FromNetwork  Level = "network option"
)

// Said is all that is said about one container: a pin belongs to the container,
// so what any of its endpoints or networks says counts for all of them.
type Said struct {
	Rebind    map[string]string
	Endpoints []map[string]string // driver options, an entry for each endpoint
	Labels    map[string]string
	Networks  []Network
}

// Decision is what the levels together come to.
type Decision struct {
	PinOptions
	From  Level    // where the selector was written; empty: nowhere
	Allow []string // the only NICs that the networks allow; nil: any
}

// Decide merges the levels. Malformed entries, two selectors on one level, and
// what goes beyond a network's ceiling are errors; nothing is then to leave.
func (s Said) Decide() (Decision, error) {
	rebind, err := oneLevel(FromRebind, []map[string]string{s.Rebind})
	if err != nil {
		return Decision{}, err
	}
	endpoint, err := oneLevel(FromEndpoint, s.Endpoints)
	if err != nil {
		return Decision{}, err
	}
	label, err := oneLevel(FromLabel, []map[string]string{s.Labels})
	if err != nil {
		return Decision{}, err
	}
	var networks []NetworkOptions
	var pins []PinOptions
	for _, n := range s.Networks {
		o, err := ParseNetworkOptions(n.Options)
		if err != nil {
			return Decision{}, fmt.Errorf("%s of %s: %w", FromNetwork, n.Title(), err)
		}
		networks, pins = append(networks, o), append(pins, o.PinOptions)
	}
	network, err := combine(FromNetwork, pins)
	if err != nil && rebind.Selector.IsZero() && endpoint.Selector.IsZero() && label.Selector.IsZero() {
		return Decision{}, err
	}
	d := Decision{PinOptions: Merge(rebind, endpoint, label, network)}
	for _, l := range []struct {
		from Level
		said PinOptions
	}{{FromRebind, rebind}, {FromEndpoint, endpoint}, {FromLabel, label}, {FromNetwork, network}} {
		if d.From == "" && !l.said.Selector.IsZero() {
			d.From = l.from
		}
	}
	for i, o := range networks {
		if err := d.limit(s.Networks[i], o); err != nil {
			return Decision{}, err
		}
	}
	return d, nil
}

// limit applies a network's ceiling.
func (d *Decision) limit(n Network, o NetworkOptions) error {
	if o.Lock {
		loose := d.Fallback != o.Fallback && !d.Fallback.Holds()
		for _, p := range d.Except {
			loose = loose || !slices.Contains(o.Except, p)
		}
		if loose || d.Selector != o.Selector || d.IP6 != o.IP6 {
			return fmt.Errorf("%s is locked (%s): its containers may not choose %s", n.Title(), KeyLock, d.PinOptions)
		}
	}
	if o.Allow == nil {
		return nil
	}
	switch {
	case d.Selector.IsZero():
		return fmt.Errorf("%s allows only %s (%s): say which one with %s", n.Title(), strings.Join(o.Allow, ", "), KeyAllow, KeyNIC)
	case d.Fallback.Host():
		return fmt.Errorf("%s allows only %s (%s), and %s=%s may leave by any", n.Title(), strings.Join(o.Allow, ", "), KeyAllow, KeyFallback, d.Fallback)
	}
	for _, name := range d.Fallback.NICs() {
		if !slices.ContainsFunc(o.Allow, func(a string) bool { return strings.EqualFold(a, name) }) {
			return fmt.Errorf("%s allows only %s (%s): %s=%s goes beyond", n.Title(), strings.Join(o.Allow, ", "), KeyAllow, KeyFallback, d.Fallback)
		}
	}
	for _, p := range d.Except {
		if !slices.ContainsFunc(o.Except, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
			return fmt.Errorf("%s allows only %s (%s), and what goes to %s=%v may leave by any", n.Title(), strings.Join(o.Allow, ", "), KeyAllow, KeyExcept, p)
		}
	}
	if d.Allow == nil {
		d.Allow = o.Allow
		return nil
	}
	d.Allow = slices.DeleteFunc(slices.Clone(d.Allow), func(name string) bool { return !slices.Contains(o.Allow, name) })
	return nil
}

// Allows returns an error unless the networks let the container use the NIC.
func (d Decision) Allows(nic string) error {
	if d.Allow == nil || slices.Contains(d.Allow, nic) {
		return nil
	}
	return fmt.Errorf("%v: %s is beyond what its network allows (%s=%s)", d.Selector, nic, KeyAllow, strings.Join(d.Allow, ","))
}

// String renders the options as they are written in labels.
func (o PinOptions) String() string {
	var s []string
	if !o.Selector.IsZero() {
		s = append(s, o.Selector.String())
	}
	if o.IP6.IsValid() {
		s = append(s, KeyIP6+"="+o.IP6.String())
	}
	if o.Fallback != "" {
		s = append(s, KeyFallback+"="+string(o.Fallback))
	}
	if o.Except != nil {
		s = append(s, KeyExcept+"="+joinPrefixes(o.Except))
	}
	if len(s) == 0 {
		return "nothing"
	}
	return strings.Join(s, " ")
}

func joinPrefixes(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// oneLevel parses maps of the same level and combines them.
func oneLevel(level Level, said []map[string]string) (PinOptions, error) {
	var parsed []PinOptions
	for _, m := range said {
		o, err := ParsePinOptions(m)
		if err != nil {
			return PinOptions{}, fmt.Errorf("%s: %w", level, err)
		}
		parsed = append(parsed, o)
	}
	return combine(level, parsed)
}

// combine merges what several on one level say. That two of them choose is an
// error, beside the merge in which the first one does.
func combine(level Level, said []PinOptions) (PinOptions, error) {
	var first Selector
	var err error
	for _, o := range said {
		switch {
		case o.Selector.IsZero():
		case first.IsZero():
			first = o.Selector
		case first != o.Selector:
			err = fmt.Errorf("%s: %v and %v contradict each other; say one of them", level, first, o.Selector)
		}
	}
	return Merge(said...), err
}

// Title is what a person calls the network.
func (n Network) Title() string {
	if n.Name != "" {
		return "network " + n.Name
	}
	return "the network of bridge " + n.Bridge
}
