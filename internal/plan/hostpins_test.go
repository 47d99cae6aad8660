package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// onHost is a snapshot with a container on the host's network and nothing else.
func onHost(labels ...string) plan.Snapshot {
	in := snapshot()
	in.Networks, in.Settings.Cgroups = nil, true
	in.Host.Bridges = []model.Bridge{{Name: "docker0", Subnets: []model.Subnet{{Prefix: prefix("172.17.0.0/16")}}}}
	in.Strays = []model.Stray{{Container: model.Container{Known: true, ID: "c1", Name: "web", Labels: label(labels...)}, Mode: "host", Running: true}}
	in.Cgroups = map[string]model.Cgroup{"c1": {ID: 4711, Level: 2}}
	return in
}

// TestHostPins: what becomes of a container on the host's network.
func TestHostPins(t *testing.T) {
	second := func(in *plan.Snapshot) {
		onNIC("eth1", func(n *model.NIC) { n.Addrs = append(n.Addrs, prefix("172.31.0.77/20")) })(in)
	}
	for _, tc := range []struct {
		name    string
		labels  []string
		edit    edit
		state   plan.State // empty: none
		nic     string
		except  []string
		problem string
	}{
		{name: "pinned", labels: []string{"eip.nic=eth1"}, state: plan.StatePinned, nic: "eth1"},
		{name: "by address", labels: []string{"eip.ip=172.31.0.14"}, edit: second, state: plan.StatePinned, nic: "eth1"},
		{name: "with exceptions", labels: []string{"eip.nic=eth1", "eip.except=10.0.0.0/8"}, state: plan.StatePinned, nic: "eth1", except: []string{"10.0.0.0/8"}},
		{name: "a second address", labels: []string{"eip.ip=172.31.0.77"}, edit: second, state: plan.StateBlocked, problem: "leaves with the first address of eth1, 172.31.0.14, and not with 172.31.0.77"},
		{name: "no such NIC", labels: []string{"eip.nic=eth9"}, state: plan.StateBlocked, problem: "no such NIC"},
		{name: "a bad label", labels: []string{"eip.nik=eth1"}, state: plan.StateBlocked, problem: "eip.nik"},
		{name: "fallback", labels: []string{"eip.nic=eth1", "eip.fallback=eth2"}, edit: carrier("eth1"), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2"},
		{name: "fallback to the host", labels: []string{"eip.nic=eth9", "eip.fallback=host"}, state: plan.StateUnpinned, problem: "follows the host's routing"},
		{name: "no selector", labels: []string{"eip.except=10.0.0.0/8"}, state: plan.StateUnpinned},
		{name: "its image cannot be read", edit: func(in *plan.Snapshot) { in.Strays[0].Container.Known = false }, state: plan.StatePending, problem: "labels are not known yet"},
		{name: "no cgroup", labels: []string{"eip.nic=eth1"}, edit: func(in *plan.Snapshot) { in.Cgroups = nil }, problem: "its cgroup is not to be found"},
		{name: "it may have ended", labels: []string{"eip.nic=eth1"}, edit: func(in *plan.Snapshot) { in.Cgroups["c1"] = model.Cgroup{} }},
		{
			name: "not started yet", labels: []string{"eip.nic=eth1"},
			edit: func(in *plan.Snapshot) { in.Cgroups, in.Strays[0].Running = nil, false },
		},
		{
			name: "not here", labels: []string{"eip.nic=eth1"}, problem: "its network mode is host, and containers there cannot be told from the host's programs: no cgroups",
			edit: func(in *plan.Snapshot) { in.Settings.Cgroups, in.Settings.NoCgroups = false, "no cgroups" },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := onHost(tc.labels...)
			if tc.edit != nil {
				tc.edit(&in)
			}
			d, problems := plan.Compute(in)
			said := slices.ContainsFunc(problems, func(p model.Problem) bool { return tc.problem != "" && strings.Contains(p.Text, tc.problem) })
			if said != (tc.problem != "") || tc.problem == "" && len(problems) > 0 {
				t.Errorf("problems %v, want %q", problems, tc.problem)
			}
			var want []plan.Group
			switch g := (plan.Group{Cgroup: in.Cgroups["c1"], Verdict: plan.Blocked}); tc.state {
			case "":
				if len(d.HostPins) > 0 {
					t.Errorf("decided: %+v", d.HostPins)
				}
			case plan.StatePinned:
				g.Verdict, g.NIC = plan.Pinned, d.IDs[tc.nic]
				for _, p := range tc.except {
					g.Except = append(g.Except, prefix(p))
				}
				want = append(want, g)
				if !slices.Contains(d.Links.Grouped, tc.nic) {
					t.Errorf("%s is not managed", tc.nic)
				}
			case plan.StateUnpinned:
			default:
				want = append(want, g)
			}
			if tc.state != "" && (len(d.HostPins) != 1 || d.HostPins[0].State != tc.state || d.HostPins[0].NIC != tc.nic) {
				t.Errorf("decided %+v, want %s by %q", d.HostPins, tc.state, tc.nic)
			}
			fw := d.Firewall
			if diff := cmp.Diff(want, fw.Groups, cmpopts.EquateComparable(prefix("10.0.0.0/8"))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if fw.Cgroups != (tc.state != "") || fw.Cgroups != slices.Contains(fw.Inside, "docker0") {
				t.Errorf("the chains are there: %v, what is inside: %v", fw.Cgroups, fw.Inside)
			}
		})
	}
}

// Where cgroups are of no use, and where nobody asks for them, nothing of the
// firewall is another one; after a pin it stays, as connections may.
func TestNoHostPins(t *testing.T) {
	for name, tc := range map[string]struct {
		edit edit
		want bool
	}{
		"of no use":            {func(in *plan.Snapshot) { in.Settings.Cgroups, in.HostPinned = false, true }, false},
		"nobody asks":          {func(in *plan.Snapshot) { in.Strays = nil }, false},
		"nobody asks any more": {func(in *plan.Snapshot) { in.Strays, in.HostPinned = nil, true }, true},
	} {
		in := onHost("eip.nic=eth1")
		tc.edit(&in)
		d, _ := plan.Compute(in)
		if fw := d.Firewall; fw.Cgroups != tc.want || (fw.Inside != nil) != tc.want || fw.Groups != nil || fw.NICs != nil {
			t.Errorf("%s: %+v", name, fw)
		}
	}
}
