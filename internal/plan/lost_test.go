package plan_test

import (
	"slices"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// What was pinned when the state was lost, and about which nothing is said, is
// held on all its networks; where something is said that counts.
func TestLostRebind(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*plan.Snapshot)
		want plan.State
	}{
		"nothing said": {func(*plan.Snapshot) {}, plan.StateBlocked},
		"remembered": {func(in *plan.Snapshot) {
			in.Lost, in.Rebinds = nil, []model.Rebind{{ContainerID: "c001", Lost: []string{"ep001"}}}
		}, plan.StateBlocked},
		"connections to forget": {func(in *plan.Snapshot) { in.Leaving = map[string]bool{"ep001": true} }, plan.StateBlocked},
		"rebound": {func(in *plan.Snapshot) {
			in.Rebinds = []model.Rebind{{ContainerID: "c001", Options: label("eip.nic=eth1")}}
		}, plan.StatePinned},
		"a label":    {func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels = label("eip.nic=eth1") }, plan.StatePinned},
		"a fallback": {func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels = label("eip.nic=eth7", "eip.fallback=host") }, plan.StateUnpinned},
		"another time": {func(in *plan.Snapshot) {
			in.Rebinds, in.Lost = []model.Rebind{{ContainerID: "c001", Lost: []string{"ep009"}}}, nil
		}, plan.StateUnpinned},
		"it has left": {func(in *plan.Snapshot) { in.Endpoints[0].Phase = model.Left }, plan.StateReleased},
	} {
		t.Run(name, func(t *testing.T) {
			second := endpoint(2, nil)
			second.NetworkID, second.Container.ID = "net2", "c001"
			in := snapshot(endpoint(1, nil), second, endpoint(3, nil))
			in.Networks = append(in.Networks, model.Network{ID: "net2", Bridge: "br-2", Stock: true, Subnet4: prefix("172.20.0.0/16")})
			in.Endpoints[1].Addr4 = addr("172.20.0.2")
			in.Lost = map[string]bool{"ep001": true}
			tt.edit(&in)
			in.Endpoints[1].Container.Labels = in.Endpoints[0].Container.Labels
			d, problems := plan.Compute(in)
			other := tt.want
			if other == plan.StateReleased {
				other = plan.StateUnpinned
			}
			if d.Pins[0].State != tt.want || d.Pins[1].State != other || d.Pins[2].State != plan.StateUnpinned {
				t.Errorf("pins %+v", d.Pins)
			}
			told := slices.DeleteFunc(problems, func(p model.Problem) bool { return p.Code != model.CodeStateLost })
			if held := tt.want == plan.StateBlocked; held != (len(told) == 1) || held && told[0].Subject != "app1" || held != d.Pins[0].Lost {
				t.Errorf("problems %v, pin %+v", told, d.Pins[0])
			}
		})
	}
}
