package driver

import (
	"context"
	"iter"
	"net/netip"
	"strconv"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// The switches that say which host ports may be chosen where none was asked for.
const (
	sysctlPortRange     = "net/ipv4/ip_local_port_range"
	sysctlReservedPorts = "net/ipv4/ip_local_reserved_ports"
)

// portRange is a range of ports, both ends in it.
type portRange struct{ first, last uint16 }

// fallbackRange is Docker's, where the kernel does not tell its own.
var fallbackRange = portRange{49153, 65535}

// where a host port is: each protocol and address is counted through by itself,
// as in Docker's port allocator.
type where struct {
	proto model.Proto
	addr  netip.Addr
}

func (w wish) where() where { return where{w.Proto, w.HostIP} }

// candidates yields the host ports that would do for the wish, in the order in
// which Docker's bridge tries them: a range from its beginning; any port from
// behind the last one that was chosen so, once around, without those that are
// reserved on this host.
func (d *Driver) candidates(ctx context.Context, w wish) iter.Seq[uint16] {
	if w.First != 0 {
		return portRange{w.First, w.Last}.from(w.First)
	}
	host, err := d.core.Host(ctx)
	if err != nil { // at boot nothing has been looked at yet
		host = model.Host{}
	}
	r, ok := parseRange(host.Sysctls[sysctlPortRange])
	if !ok {
		r = fallbackRange
	}
	start := r.first
	if last := d.dynamic[w.where()]; r.first <= last && last < r.last {
		start = last + 1
	}
	reserved := parseReserved(host.Sysctls[sysctlReservedPorts])
	return func(yield func(uint16) bool) {
		for port := range r.from(start) {
			if !reserved(port) && !yield(port) {
				return
			}
		}
	}
}

// from yields the range once around, beginning at start.
func (r portRange) from(start uint16) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		port := start
		for range int(r.last-r.first) + 1 {
			if !yield(port) {
				return
			}
			if port == r.last {
				port = r.first
			} else {
				port++
			}
		}
	}
}

// parseRange reads "32768 60999".
func parseRange(s string) (portRange, bool) {
	fields := strings.Fields(s)
	if len(fields) != 2 {
		return portRange{}, false
	}
	return newRange(fields[0], fields[1])
}

func newRange(first, last string) (portRange, bool) {
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	return portRange{uint16(a), uint16(b)}, errA == nil && errB == nil && 0 < a && a <= b
}

// parseReserved reads "8080,9148-9150"; what makes no sense reserves nothing.
func parseReserved(s string) func(uint16) bool {
	var ranges []portRange
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		if r, ok := newRange(first, last); ok {
			ranges = append(ranges, r)
		}
	}
	return func(port uint16) bool {
		for _, r := range ranges {
			if r.first <= port && port <= r.last {
				return true
			}
		}
		return false
	}
}
