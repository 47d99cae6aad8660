package driver_test

import (
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The calls that end an endpoint, in any order, number and mixture, and with
// what does not count in between, leave nothing of it, however far it had come.
func TestTeardownInAnyOrder(t *testing.T) {
	for _, begun := range []string{"", "CE:a", "CE:a Join:a", "CE:a Join:a PEC:a", "CE:a Join:a PECfail:a"} {
		ends := []string{"REC:a", "Leave:a", "DE:a", "PECempty:a"}
		for word := range both(words(ends, 4), words(append(ends, "Info:a", "EMPTY:a", "STRANGER:a"), 2)) {
			if !slices.Contains(word, "DE:a") {
				continue
			}
			h := newHarness(t)
			h.network(nil)
			want := h.held()
			h.playAll(begun)
			h.playAll(strings.Join(word, " "))
			h.same(begun+" and then "+strings.Join(word, " "), want)
		}
	}
}

// Of a running endpoint's calls, in any order, only the last that is about ports counts.
func TestConnectivityInAnyOrder(t *testing.T) {
	ports := []string{"PEC:a", "PECother:a", "REC:a", "PECempty:a"}
	for word := range both(words(ports, 3), words(append(ports, "Info:a", "CE:a", "Join:a", "EMPTY:a", "STRANGER:a"), 2)) {
		last := ""
		for _, step := range word {
			if strings.HasPrefix(step, "PEC") || strings.HasPrefix(step, "REC") {
				last = step
			}
		}
		want := newHarness(t)
		want.network(nil)
		want.playAll("CE:a Join:a " + last)

		h := newHarness(t)
		h.network(nil)
		h.playAll("CE:a Join:a " + strings.Join(word, " "))
		h.same(strings.Join(word, " "), want.held())
	}
}

// A container that comes back under a new endpoint id with its old address ends
// as it would alone, whichever calls about the old id Docker makes or does not
// make, and when.
func TestSuccessorInAnyOrder(t *testing.T) {
	alone := newHarness(t)
	alone.network(nil)
	alone.playAll("CE:b Join:b PEC:b")
	want := alone.held()
	begin := []string{"CE:b", "Join:b", "PEC:b"}
	for word := range words([]string{"REC:a", "Leave:a", "DE:a", "PECempty:a"}, 2) {
		for order := range interleaved(begin, word) {
			h := newHarness(t)
			h.network(nil)
			h.playAll("CE:a Join:a PEC:a")
			h.playAll(strings.Join(order, " "))
			h.same(strings.Join(order, " "), want)
		}
	}
}

// A network that is deleted takes along what Docker did not delete before it,
// and calls for what is not there (any more) leave nothing behind.
func TestNetworkInAnyOrder(t *testing.T) {
	for word := range words([]string{"CN", "DN", "CE:a", "Join:a", "PEC:a", "DE:a"}, 4) {
		h := newHarness(t)
		want := h.held()
		for _, step := range word {
			call, _, _ := strings.Cut(step, ":")
			known := len(h.Store.Networks()) == 1
			switch call {
			case "CN":
				h.network(nil)
			case "DN", "DE":
				play(h, call, netID, epA)
			default: // refused, where what it is about is missing
				before := h.held()
				if _, errText := h.call(request(call, netID, epA)); errText != "" {
					h.same(strings.Join(word, " ")+": refused "+step, before)
				} else if !known {
					t.Errorf("%v: %s was accepted without its network", word, step)
				}
			}
		}
		play(h, "DN", netID, "")
		h.same(strings.Join(word, " "), want)
	}
}

func (h *harness) playAll(steps string) {
	h.t.Helper()
	for step := range strings.FieldsSeq(steps) {
		call, letter, _ := strings.Cut(step, ":")
		play(h, call, netID, map[string]string{"a": epA, "b": epB}[letter])
	}
}

func (h *harness) same(what string, want held) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.held(), compareHeld...); diff != "" {
		h.t.Errorf("%s (-in order +here)\n%s", what, diff)
	}
	if strings.Contains(h.log.String(), "panic in a call") {
		h.t.Error(h.log.String())
	}
}

// emptyBodies repeats every call as Docker does when its connection broke.
func (h *harness) emptyBodies() {
	h.t.Helper()
	for _, call := range calls[:9] {
		if status, answer := h.raw("/NetworkDriver."+call, ""); status != http.StatusBadRequest {
			h.t.Errorf("%s without a body: %d %s", call, status, answer)
		}
	}
}

// strangers makes every call of an endpoint's about one that nobody made, and
// about one on a network that nobody made.
func (h *harness) strangers() {
	h.t.Helper()
	for _, network := range []string{netID, "x0z9k2l3m4n5o6p7q8r9s0t1u"} {
		for _, call := range []string{"Info", "REC", "Leave", "DE", "PECempty"} {
			name, req := request(call, network, "nobody")
			h.ok(name, req)
		}
		for _, call := range []string{"Join", "PEC"} {
			name, req := request(call, network, "nobody")
			if _, errText := h.call(name, req); !strings.HasPrefix(errText, "endpoint nobody is not known to eipnet") {
				h.t.Errorf("%s of an unknown endpoint: %q", name, errText)
			}
		}
	}
}

// request is one call of an endpoint's.
func request(call, network, id string) (name string, req object) {
	program := func(options object) (string, object) {
		return "ProgramExternalConnectivity", object{"NetworkID": network, "EndpointID": id, "Options": options}
	}
	switch call {
	case "CE":
		return "CreateEndpoint", endpointReq(network, id, "172.19.0.2/16", object{"com.docker.network.portmap": ports(tcp(8090, 8080))})
	case "Join":
		return "Join", ref(network, id)
	case "PEC":
		return program(object{"com.docker.network.portmap": ports(tcp(8090, 8080))})
	case "PECother":
		return program(object{"com.docker.network.portmap": ports(tcp(8091, 8080), binding(17, "127.0.0.1", 53, 53, 53))})
	case "PECempty":
		return program(object{})
	case "Info":
		return "EndpointOperInfo", ref(network, id)
	case "REC":
		return "RevokeExternalConnectivity", ref(network, id)
	case "Leave":
		return "Leave", ref(network, id)
	case "DE":
		return "DeleteEndpoint", ref(network, id)
	case "DN":
		return "DeleteNetwork", object{"NetworkID": network}
	}
	panic(fmt.Sprint("no call is named ", call))
}

// words yields all words of up to so many letters.
func words(alphabet []string, most int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		var extend func(word []string) bool
		extend = func(word []string) bool {
			if !yield(word) {
				return false
			}
			if len(word) == most {
				return true
			}
			for _, letter := range alphabet {
				if !extend(append(slices.Clone(word), letter)) {
					return false
				}
			}
			return true
		}
		extend(nil)
	}
}

func both(a, b iter.Seq[[]string]) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for _, seq := range []iter.Seq[[]string]{a, b} {
			for word := range seq {
				if !yield(word) {
					return
				}
			}
		}
	}
}

// interleaved yields all ways to mix two words that keep the order of each.
func interleaved(a, b []string) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		var mix func(done, a, b []string) bool
		mix = func(done, a, b []string) bool {
			if len(a)+len(b) == 0 {
				return yield(done)
			}
			return (len(a) == 0 || mix(append(slices.Clone(done), a[0]), a[1:], b)) &&
				(len(b) == 0 || mix(append(slices.Clone(done), b[0]), a, b[1:]))
		}
		mix(nil, a, b)
	}
}
