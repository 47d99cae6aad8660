package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestUndecided: what may still turn out to be pinned is not let out as unpinned.
func TestUndecided(t *testing.T) {
	stock := func(strict bool) model.Network {
		n := model.Network{ID: "stock", Stock: true, Bridge: "br-stock", Subnet4: prefix("172.20.0.0/16")}
		if strict {
			n.Options = label("eip.strict=true")
		}
		return n
	}
	on := func(network, a string, e model.Endpoint) model.Endpoint {
		e.ID, e.NetworkID, e.Addr4 = e.ID+network, network, addr(a)
		return e
	}
	plain, pinned := endpoint(1, nil), endpoint(1, label("eip.nic=eth1"))
	unread := plain
	unread.Container = model.Container{ID: plain.Container.ID, Name: plain.Container.Name}
	asked := plain
	asked.OptionsKnown = true
	for _, c := range []struct {
		name      string
		strict    bool
		silent    bool // Docker has not been heard
		endpoints []model.Endpoint
		states    []plan.State
		sources   []plan.Verdict
	}{
		{
			name: "a container of Docker's own, and nobody asked", endpoints: []model.Endpoint{on("stock", "172.20.0.2", model.Endpoint{Phase: model.Joined})},
			states: []plan.State{plan.StateUnpinned},
		},
		{
			name: "an image that cannot be read", endpoints: []model.Endpoint{on("stock", "172.20.0.2", unread)},
			states: []plan.State{plan.StatePending}, sources: []plan.Verdict{plan.Pending},
		},
		{
			name: "one that cannot be read any more", endpoints: []model.Endpoint{on("net", "172.19.0.2", pinned), on("stock", "172.20.0.2", unread)},
			states: []plan.State{plan.StatePinned, plan.StatePinned}, sources: []plan.Verdict{plan.Pinned, plan.Pinned},
		},
		{
			name: "loose, options not told", endpoints: []model.Endpoint{on("stock", "172.20.0.2", plain)},
			states: []plan.State{plan.StateUnpinned},
		},
		{
			name: "strict, options not told", strict: true, endpoints: []model.Endpoint{on("stock", "172.20.0.2", plain)},
			states: []plan.State{plan.StatePending}, sources: []plan.Verdict{plan.Pending},
		},
		{
			name: "strict, none", strict: true, endpoints: []model.Endpoint{on("stock", "172.20.0.2", asked)},
			states: []plan.State{plan.StateUnpinned}, sources: []plan.Verdict{plan.ViaHost},
		},
		{
			// A pin of an earlier process stays in the kernel until it is known.
			name: "another network may pin it", silent: true, endpoints: []model.Endpoint{on("net", "172.19.0.2", plain)},
			states: []plan.State{plan.StatePending},
		},
		{
			name: "pinned whatever another network says", silent: true, endpoints: []model.Endpoint{on("net", "172.19.0.2", pinned)},
			states: []plan.State{plan.StatePinned}, sources: []plan.Verdict{plan.Pinned},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := snapshot(c.endpoints...)
			in.Networks = append(in.Networks, stock(c.strict))
			in.DockerUp = !c.silent
			d, _ := plan.Compute(in)
			var states []plan.State
			for _, p := range d.Pins {
				states = append(states, p.State)
			}
			var sources []plan.Verdict
			for _, s := range d.Firewall.Sources {
				sources = append(sources, s.Verdict)
			}
			if diff := cmp.Diff(c.states, states); diff != "" {
				t.Errorf("states (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.sources, sources); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
		})
	}
}
