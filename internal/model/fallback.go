package model

import (
	"fmt"
	"slices"
	"strings"
)

// Fallback says what becomes of a pin whose NIC is not there or does not work:
// the NICs to take instead, in this order, and what if none of them works
// either. "eth2,eth3", "eth2,host", "host", "hold". The zero value is "not
// said", which behaves as FallbackHold.
type Fallback string

// The fallbacks that name no NIC. Each may also stand last in a list of NICs,
// where hold is the same as nothing.
const (
	FallbackHold Fallback = "hold" // nothing leaves the host
	FallbackHost Fallback = "host" // the host's own routing
)

// parseFallback reads a list, and leaves out what says nothing.
func parseFallback(value string) (Fallback, error) {
	var out []string
	words := strings.Split(value, ",")
	for i, w := range words {
		w = strings.TrimSpace(w)
		last := i == len(words)-1
		switch f := Fallback(w); {
		case f == FallbackHold && last && i > 0:
		case (f == FallbackHold || f == FallbackHost) && !last:
			return "", fmt.Errorf("%s=%q: %s ends the list, nothing can follow", KeyFallback, value, w)
		case !IsLinkName(w):
			return "", fmt.Errorf("%s=%q: %q is neither hold nor host nor an interface name", KeyFallback, value, w)
		case slices.Contains(out, w):
			return "", fmt.Errorf("%s=%q names %s twice", KeyFallback, value, w)
		default:
			out = append(out, w)
		}
	}
	return Fallback(strings.Join(out, ",")), nil
}

// NICs lists the NICs to take instead, in order.
func (f Fallback) NICs() []string {
	if f == "" || f == FallbackHold || f == FallbackHost {
		return nil
	}
	return slices.DeleteFunc(strings.Split(string(f), ","), func(s string) bool { return s == string(FallbackHost) })
}

// Host reports whether the host's own routing is the last resort.
func (f Fallback) Host() bool {
	return f == FallbackHost || strings.HasSuffix(string(f), ","+string(FallbackHost))
}

// Holds reports whether there is nothing but to hold.
func (f Fallback) Holds() bool { return f == "" || f == FallbackHold }

// Health is what is known of a NIC beyond its link: whether its way to the
// world works.
type Health struct {
	State HealthState
	Why   string // of Failed and Recovering
}

// HealthState is how well a NIC works.
type HealthState uint8

// The states of a NIC, best first.
const (
	Healthy    HealthState = iota // nothing is known against it
	Recovering                    // it works again, but not for long enough to trust it
	Failed                        // it does not work
)

func (s HealthState) String() string {
	switch s {
	case Healthy:
		return "healthy"
	case Recovering:
		return "recovering"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("health %d", uint8(s))
}

// Fitness is a NIC's health together with its link and its way out.
func (n NIC) Fitness(h Health) Health {
	switch {
	case n.VRF != "":
		return Health{Failed, "is in the VRF " + n.VRF}
	case !n.Up:
		return Health{Failed, "is down"}
	case !n.Carrier:
		return Health{Failed, "has no carrier"}
	case !n.Gateway4.Addr.IsValid() && !n.Gateway6.Addr.IsValid():
		return Health{Failed, "has no gateway that is known"}
	}
	return h
}
