package main

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/plan"
)

func TestPrintRebound(t *testing.T) {
	eth1 := api.Way{State: plan.StatePinned, NIC: "eth1", LeavesAs: []netip.Addr{netip.MustParseAddr("172.31.0.14")}, Public: netip.MustParseAddr("119.26.38.75")}
	eth2 := api.Way{State: plan.StatePinned, NIC: "eth2", LeavesAs: []netip.Addr{netip.MustParseAddr("172.31.0.21")}}
	for _, tc := range []struct {
		moved api.Rebound
		want  string
	}{
		{
			api.Rebound{Container: "web", Before: []api.Way{eth1, eth1}, After: []api.Way{eth2, eth2}},
			"web: eth1 (172.31.0.14, EIP 119.26.38.75) -> eth2 (172.31.0.21)\n",
		},
		{api.Rebound{Container: "web", Before: []api.Way{{State: plan.StateUnpinned}}, After: []api.Way{eth2}}, "web: unpinned -> eth2 (172.31.0.21)\n"},
		{api.Rebound{Container: "web", Before: []api.Way{eth2}, After: []api.Way{eth2}}, "web: eth2 (172.31.0.21), as before\n"},
		{api.Rebound{Container: "web"}, "web: cleared\n"},
	} {
		var out bytes.Buffer
		if err := printRebound(&out, tc.moved); err != nil || out.String() != tc.want {
			t.Errorf("printed %q (%v), want %q", out.String(), err, tc.want)
		}
	}
}

func TestRebindCompletion(t *testing.T) {
	s := api.Status{
		NICs:      []api.NIC{{Name: "eth0"}, {Name: "eth1"}},
		Endpoints: []api.Endpoint{{Container: "web"}, {Container: "db"}, {Container: "web"}},
	}
	if got, want := complete(s, nil), []string{"db", "web"}; !slices.Equal(got, want) {
		t.Errorf("containers: %v, want %v", got, want)
	}
	if got, want := complete(s, []string{"web"}), []string{"eth0", "eth1"}; !slices.Equal(got, want) {
		t.Errorf("NICs: %v, want %v", got, want)
	}
}
