package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestFallbacks: which way a container with eip.nic=eth1 and some fallback takes.
func TestFallbacks(t *testing.T) {
	failed := model.Health{State: model.Failed, Why: "gets no answer from its gateway 172.31.0.1"}
	recovering := model.Health{State: model.Recovering, Why: "works again"}
	for _, tc := range []struct {
		name     string
		fallback string
		edit     func(*plan.Snapshot)
		state    plan.State
		nic      string
		problem  string // of what it says
	}{
		{name: "all is well", fallback: "eth2,host", state: plan.StatePinned, nic: "eth1"},
		{name: "no carrier", fallback: "eth2", edit: carrier("eth1"), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eth1 has no carrier"},
		{name: "no answer", fallback: "eth2", edit: healths("eth1", failed), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eth1 gets no answer from its gateway 172.31.0.1"},
		{name: "gone", fallback: "eth2", edit: without("eth1"), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eip.nic=eth1 is not on this host"},
		{name: "the fallback is gone", fallback: "eth2,eth0", edit: without("eth2"), state: plan.StatePinned, nic: "eth1", problem: "eip.fallback names eth2, and no NIC of this host has this name; NICs of this host: eth0"},
		{name: "the second one", fallback: "eth2,eth0", edit: all(carrier("eth1"), carrier("eth2")), state: plan.StatePinned, nic: "eth0", problem: "failed over to eth0"},
		{name: "none works: hold", fallback: "eth2", edit: all(carrier("eth1"), healths("eth2", failed)), state: plan.StatePinned, nic: "eth1", problem: "is down"},
		{name: "none works: host", fallback: "eth2,host", edit: all(carrier("eth1"), carrier("eth2")), state: plan.StateUnpinned, problem: "follows the host's routing"},
		{name: "gone, none works: hold", fallback: "eth2", edit: all(without("eth1"), carrier("eth2")), state: plan.StateBlocked, problem: "no such NIC"},
		{name: "just back is not trusted", fallback: "eth2", edit: healths("eth1", recovering), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eth1 works again"},
		{name: "but better than nothing", fallback: "eth2,host", edit: all(healths("eth1", recovering), carrier("eth2")), state: plan.StatePinned, nic: "eth1"},
		{name: "a fallback that is just back, too", fallback: "eth2,host", edit: all(carrier("eth1"), healths("eth2", recovering)), state: plan.StatePinned, nic: "eth2", problem: "failed over"},
		{name: "it is not asked of a pin that holds", fallback: "hold", edit: healths("eth1", failed), state: plan.StatePinned, nic: "eth1", problem: "gets no answer"},
		{
			name: "no gateway", fallback: "eth2", edit: onNIC("eth1", func(n *model.NIC) { n.Gateway4 = model.Gateway{} }),
			state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eth1 has no gateway that is known",
		},
		{name: "no address", fallback: "eth2", edit: noAddress("eth1"), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eth1 has no usable address"},
		{name: "nor has the fallback", fallback: "eth2", edit: all(carrier("eth1"), noAddress("eth2")), state: plan.StatePinned, nic: "eth1", problem: "is down"},
		{name: "in a VRF", fallback: "eth2", edit: inVRF("eth1"), state: plan.StatePinned, nic: "eth2", problem: "failed over to eth2: eth1 is in the VRF blue"},
		{name: "in a VRF, as the fallback is: hold", fallback: "eth2", edit: all(inVRF("eth1"), inVRF("eth2")), state: plan.StateBlocked, problem: "held: eth1 is in the VRF blue"},
		{name: "it stays", fallback: "eth2,eth0", edit: stay("eth0"), state: plan.StatePinned, nic: "eth0", problem: "failed over to eth0: eth1 works again"},
		{name: "as long as that works", fallback: "eth2,eth0", edit: all(stay("eth0"), carrier("eth0")), state: plan.StatePinned, nic: "eth1"},
		{name: "and is asked for", fallback: "eth2", edit: stay("eth0"), state: plan.StatePinned, nic: "eth1"},
		{
			name: "and nobody says otherwise", fallback: "eth2", state: plan.StatePinned, nic: "eth1",
			edit: all(stay("eth2"), func(in *plan.Snapshot) {
				in.Rebinds = []model.Rebind{{ContainerID: "c100", Options: label("eip.nic=eth1")}}
			}),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := endpoint(100, label("eip.nic=eth1", "eip.fallback="+tc.fallback))
			e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
			in := snapshot(e)
			if tc.edit != nil {
				tc.edit(&in)
			}
			d, problems := plan.Compute(in)
			if p := d.Pins[0]; p.State != tc.state || p.NIC != tc.nic {
				t.Errorf("%s by %q (%s), want %s by %q", p.State, p.NIC, p.Why, tc.state, tc.nic)
			}
			said := slices.ContainsFunc(problems, func(p model.Problem) bool { return strings.Contains(p.Text, tc.problem) })
			if !said && tc.problem != "" || tc.problem == "" && len(problems) > 0 {
				t.Errorf("problems %v, want %q", problems, tc.problem)
			}
			if nic, ok := in.Host.NIC(tc.nic); ok && tc.state == plan.StatePinned {
				if len(d.Ports) != 1 || !nic.Has(d.Ports[0].Forward.Addr) {
					t.Errorf("published %+v, want it to follow to %s", d.Ports, tc.nic)
				}
			}
			if tc.fallback == "hold" {
				return
			}
			// Before it is needed a fallback is watched, and has its table.
			want := append([]string{"eth1"}, model.Fallback(tc.fallback).NICs()...)
			slices.Sort(want)
			if !slices.Equal(d.Watch, want) {
				t.Errorf("watches %v, want %v", d.Watch, want)
			}
			for _, n := range in.Host.NICs {
				if slices.Contains(want, n.Name) && !slices.Contains(d.Links.Grouped, n.Name) {
					t.Errorf("%s is not managed", n.Name)
				}
			}
		})
	}
}

// What comes in by a NIC in a VRF finds no container: a pin to it is held, and says what to do.
func TestPinToNICInVRF(t *testing.T) {
	for _, on := range []string{"eip.nic=eth1", "eip.ip=172.31.0.14", "eip.public=119.26.38.75"} {
		in := snapshot(endpoint(100, label(on)))
		inVRF("eth1")(&in)
		d, problems := plan.Compute(in)
		if p := d.Pins[0]; p.State != plan.StateBlocked || p.Why != "eth1 is in the VRF blue" || d.Firewall.Sources[0].Verdict != plan.Blocked {
			t.Errorf("%s: %s (%s), source %+v", on, p.State, p.Why, d.Firewall.Sources)
		}
		if len(problems) != 1 || problems[0].Code != model.CodeNICInVRF || problems[0].Subject != "app100" || !strings.Contains(problems[0].Fix, "ip link set eth1 nomaster") {
			t.Errorf("%s: problems %v", on, problems)
		}
	}
}

// A NIC that the network does not allow is never taken, though its name is
// written in another case than the network's.
func TestFallbackBeyondTheCeiling(t *testing.T) {
	in := snapshot(endpoint(100, label("eip.nic=eth1", "eip.fallback=ETH2")))
	in.Networks[0].Options = label("eip.allow=eth1,ETH2")
	carrier("eth1")(&in)
	d, _ := plan.Compute(in)
	if p := d.Pins[0]; p.NIC != "eth1" {
		t.Errorf("pinned to %s, which %s does not name", p.NIC, in.Networks[0].Options)
	}
}

type edit = func(*plan.Snapshot)

func all(edits ...edit) edit {
	return func(in *plan.Snapshot) {
		for _, e := range edits {
			e(in)
		}
	}
}

func onNIC(name string, fn func(*model.NIC)) edit {
	return func(in *plan.Snapshot) {
		i := slices.IndexFunc(in.Host.NICs, func(n model.NIC) bool { return n.Name == name })
		fn(&in.Host.NICs[i])
	}
}

func carrier(name string) edit { return onNIC(name, func(n *model.NIC) { n.Carrier = false }) }
func inVRF(name string) edit   { return onNIC(name, func(n *model.NIC) { n.VRF = "blue" }) }
func noAddress(name string) edit {
	return onNIC(name, func(n *model.NIC) { n.Addrs, n.Routes = nil, nil })
}

func without(name string) edit {
	return func(in *plan.Snapshot) {
		in.Host.NICs = slices.DeleteFunc(in.Host.NICs, func(n model.NIC) bool { return n.Name == name })
	}
}

func healths(name string, h model.Health) edit {
	return func(in *plan.Snapshot) {
		if in.Health == nil {
			in.Health = make(map[string]model.Health)
		}
		in.Health[name] = h
	}
}

func stay(name string) edit {
	return func(in *plan.Snapshot) {
		in.Stay = map[string]plan.Stay{"c100": {Selector: model.Selector{Kind: model.ByNIC, Name: "eth1"}, From: model.FromLabel, NIC: name}}
	}
}
