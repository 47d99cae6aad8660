package reconcile

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

func TestPresent(t *testing.T) {
	networks := []model.Network{{ID: "n", Stock: true, Bridge: "br-n"}, {ID: "ours", Bridge: "eip_bridge"}}
	a := model.Endpoint{ID: "a", NetworkID: "n", MAC: "02:00:00:00:00:0a", Phase: model.Joined}
	twin := model.Endpoint{ID: "twin", NetworkID: "n", MAC: a.MAC, Phase: model.Joined} // MAC by address, as engines up to 27 give it
	mine := model.Endpoint{ID: "mine", NetworkID: "ours", MAC: a.MAC, Phase: model.Joined}
	br := []string{"br-n"}
	type step struct {
		what      string
		endpoints []model.Endpoint
		looked    []string
		peers     map[string]string
		left      []string
	}
	for _, steps := range [][]step{
		{
			{"before the port is there", []model.Endpoint{a, mine}, br, nil, nil},
			{"with its port", []model.Endpoint{a, mine}, br, map[string]string{"veth1": a.MAC}, nil},
			{"port gone", []model.Endpoint{a, mine}, br, nil, []string{"a"}},
			{"another's port with the same MAC", []model.Endpoint{a, mine}, br, map[string]string{"veth2": a.MAC}, []string{"a"}},
			{"not looked at", []model.Endpoint{a, mine}, nil, nil, []string{"a"}},
			{"the other one listed", []model.Endpoint{a, twin}, br, map[string]string{"veth2": a.MAC}, []string{"a"}},
			{"the first one no more", []model.Endpoint{twin}, br, map[string]string{"veth2": a.MAC}, nil},
		},
		{
			{"with its port", []model.Endpoint{a}, br, map[string]string{"veth1": a.MAC}, nil},
			{"taken out of the bridge", []model.Endpoint{a}, br, map[string]string{}, []string{"a"}},
			{"and put back, with a MAC of its own", []model.Endpoint{a}, br, map[string]string{"veth1": "02:00:00:00:00:ff"}, nil},
			{"listed no more", nil, br, map[string]string{"veth1": a.MAC}, nil},
			{"listed again", []model.Endpoint{a}, br, map[string]string{"veth3": a.MAC}, nil},
		},
	} {
		p := make(ports)
		for _, s := range steps {
			var left []string
			for _, e := range p.present(networks, s.endpoints, s.looked, s.peers) {
				if e.Phase == model.Left {
					left = append(left, e.ID)
				}
			}
			if diff := cmp.Diff(s.left, left); diff != "" {
				t.Errorf("%s (-want +got):\n%s", s.what, diff)
			}
			if len(s.endpoints) > 0 && len(p) > 0 {
				if got := p.bridges(networks, s.endpoints, plan.Firewall{}); !cmp.Equal(got, br) {
					t.Errorf("%s: looks at %v next", s.what, got)
				}
			}
		}
		if len(p) != 1 {
			t.Errorf("remembers %v", p)
		}
	}
}
