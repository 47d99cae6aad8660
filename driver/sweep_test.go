package driver_test

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

// only returns what Sweep asks: whether an id is one of these.
func only(ids ...string) func(string) bool {
	return func(id string) bool { return strings.Contains(strings.Join(ids, " "), id) }
}

func TestSweep(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	second := networkReq("second", nil)
	second["IPv4Data"] = []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}}
	h.ok("CreateNetwork", second)
	if err := h.Store.PutNetwork(model.Network{ID: "stock", Stock: true, Bridge: "br-1"}); err != nil {
		t.Fatal(err)
	}
	left, created := "c"+epA[1:], "d"+epA[1:]
	h.joined(epA, "172.19.0.2/16")
	h.joined(epB, "172.19.0.3/16")
	h.joined(left, "172.19.0.4/16")
	h.ok("Leave", ref(netID, left))
	h.ok("CreateEndpoint", endpointReq(netID, created, "172.19.0.5/16", nil))

	sweep := func(endpoints, networks func(string) bool, want int, keptEndpoints, keptNetworks []string) {
		t.Helper()
		if got := h.driver.Sweep(t.Context(), endpoints, networks); got != want {
			t.Errorf("removed %d, want %d", got, want)
		}
		var es, ns []string
		for _, e := range h.Store.Endpoints() {
			es = append(es, e.ID)
		}
		for _, n := range h.Store.Networks() {
			ns = append(ns, n.ID)
		}
		if diff := cmp.Diff([][]string{keptEndpoints, keptNetworks}, [][]string{es, ns}); diff != "" {
			t.Errorf("kept (-want +got)\n%s", diff)
		}
	}
	all := []string{netID, "second", "stock"}
	sweep(only(epA, epB, left, created), only(all...), 0, []string{epA, epB, left, created}, all)
	sweep(only(epA, left), only(all...), 2, []string{epA, left}, all)
	if got := len(h.Links.Veths()); got != 2 {
		t.Errorf("%d veths, want 2", got)
	}
	sweep(only(epA), only("second"), 1, []string{epA}, all) // its network has an endpoint
	h.Links.Fail(errors.New("device or resource busy"))
	sweep(only(), only("second"), 0, []string{epA}, all)
	if e := h.endpoint(epA); e.Phase != model.Left || !strings.Contains(h.log.String(), "device or resource busy") {
		t.Errorf("whose veth stays: %+v", e)
	}
	h.Links.Fail(nil)
	sweep(only(), only("second"), 2, nil, []string{"second", "stock"})
	if diff := cmp.Diff([]string{"br-1", "eip-second"}, h.Core.Bridges()); diff != "" {
		t.Errorf("bridges (-want +got)\n%s", diff)
	}
	want := []netip.Addr{addr("172.19.0.3"), addr("172.19.0.5"), addr("172.19.0.4"), addr("172.19.0.2")}
	if diff := cmp.Diff(want, h.Links.Flushed(), compareAddrs); diff != "" {
		t.Errorf("connections forgotten (-want +got)\n%s", diff)
	}
	h.Store.Fail(errors.New("disk full"))
	sweep(only(), only(), 0, nil, []string{"second", "stock"})
	h.Store.Fail(nil)
	h.ok("CreateEndpoint", endpointReq("second", epA, "10.9.0.2/24", nil))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if got := h.driver.Sweep(ended, only(), only()); got != 0 {
			t.Fatalf("removed %d when eipnet ends", got)
		}
	}
}

// A call that is under way may be about to make the endpoint another one's.
func TestSweepAsksWhileNoCallIsUnderWay(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
	h.Labels.Set(true, true)
	joined := make(chan struct{})
	go func() { defer close(joined); h.ok("Join", joinReq(epA)) }()
	for h.Labels.Asked() == 0 {
		runtime.Gosched()
	}
	asked := 0
	h.driver.Sweep(t.Context(), func(id string) bool {
		asked++
		return h.endpoint(id).Phase == model.Joined
	}, only(netID))
	<-joined
	if e := h.endpoint(epA); asked != 1 || e.Phase != model.Joined {
		t.Errorf("asked %d times; %+v", asked, e)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Docker deletes an endpoint that the state has lost: its veth is in the way of nobody then.
func TestDeleteLostEndpoint(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	h.joined(epB, "172.19.0.3/16")
	if err := h.Store.DeleteEndpoint(epA); err != nil {
		t.Fatal(err)
	}
	h.ok("Leave", ref(netID, epA))
	h.ok("DeleteEndpoint", ref(netID, epA))
	h.ok("DeleteEndpoint", ref(netID, epA))
	if got := len(h.Links.Veths()); got != 1 {
		t.Errorf("%d veths, want one", got)
	}
}
