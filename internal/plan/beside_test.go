package plan_test

import (
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestBeside: a container about which something was said, by whichever way, and
// that is on a network out of reach is a problem, whether it is on one of ours, too, or not.
func TestBeside(t *testing.T) {
	const disconnect, instead = "docker network disconnect lan app1", "instead"
	for _, tc := range []struct {
		name    string
		labels  map[string]string
		edit    func(*plan.Snapshot)
		alone   bool              // no endpoint of ours
		network map[string]string // labels of the macvlan
		want    string            // of the fix; empty: no problem
	}{
		{name: "label", labels: label("eip.nic=eth1"), want: disconnect},
		{name: "label, and nothing else", labels: label("eip.nic=eth1"), alone: true, want: instead},
		{name: "label, ours was left", labels: label("eip.nic=eth1"), edit: func(in *plan.Snapshot) { in.Endpoints[0].Phase = model.Left }, want: instead},
		{name: "network's option", edit: func(in *plan.Snapshot) { in.Networks[0].Options = label("eip.nic=eth1") }, want: disconnect},
		{name: "endpoint's option", edit: func(in *plan.Snapshot) { in.Endpoints[0].Options = label("eip.nic=eth1") }, want: disconnect},
		{name: "rebind", edit: func(in *plan.Snapshot) {
			in.Rebinds = []model.Rebind{{ContainerID: "c001", Options: label("eip.nic=eth1")}}
		}, want: disconnect},
		{name: "rebind, and no endpoint of ours", alone: true, edit: func(in *plan.Snapshot) {
			in.Rebinds = []model.Rebind{{ContainerID: "c001", Options: label("eip.nic=eth1")}}
		}, want: instead},
		{name: "held", edit: func(in *plan.Snapshot) { in.Endpoints[0].Options = label("eip.nick=eth1") }, want: disconnect},
		{name: "the NIC is not there", edit: func(in *plan.Snapshot) { in.Networks[0].Options = label("eip.nic=eth9") }, want: disconnect},
		{name: "fallen back to the host", edit: func(in *plan.Snapshot) {
			in.Networks[0].Options = label("eip.nic=eth9", "eip.fallback=host")
		}, want: disconnect},
		{name: "image not readable", alone: true, edit: func(in *plan.Snapshot) { in.Beside[0].Container.Known = false }, want: instead},
		{name: "labels of a network that has no use for them", alone: true, network: label("eip.nic=eth1"), want: instead},
		{name: "unpinned"},
		{name: "nothing said, and nothing else", alone: true},
		{name: "left the pinned network", edit: func(in *plan.Snapshot) {
			in.Networks[0].Options, in.Endpoints[0].Phase = label("eip.nic=eth1"), model.Left
		}},
		{name: "its neighbour is pinned", edit: func(in *plan.Snapshot) {
			in.Endpoints = append(in.Endpoints, endpoint(2, label("eip.nic=eth1")))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := endpoint(1, tc.labels)
			in := snapshot(e)
			if tc.alone {
				in = snapshot()
			}
			in.Beside = []model.Beside{{Container: e.Container, NetworkID: "lan", Network: "lan", Driver: "macvlan", Labels: tc.network}}
			if tc.edit != nil {
				tc.edit(&in)
			}
			_, problems := plan.Compute(in)
			var got []model.Problem
			for _, p := range problems {
				if p.Code == model.CodeBesidePin {
					got = append(got, p)
				}
			}
			if tc.want == "" {
				if len(got) > 0 {
					t.Errorf("problems %v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Severity != model.Failure || got[0].Subject != "app1" ||
				!strings.Contains(got[0].Text, "network lan of driver macvlan") || !strings.Contains(got[0].Fix, tc.want) {
				t.Errorf("problems %v, want one with %q", problems, tc.want)
			}
		})
	}
}
