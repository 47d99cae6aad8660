package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// alone is a host with nothing but a host entry.
func alone(edit func(*model.HostEntry)) plan.Snapshot {
	e := model.HostEntry{
		Name: "web", Bridge: "br-eip1", Address: addr("172.18.0.100"), Options: label("eip.nic=eth1"),
		Publishes: []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8090}},
	}
	if edit != nil {
		edit(&e)
	}
	in := snapshot()
	in.Networks, in.Endpoints = []model.Network{e.Network()}, []model.Endpoint{e.Endpoint()}
	return in
}

// A host entry takes a bridge with its address, both locks for that address,
// and nothing of what containers need.
func TestHostEntry(t *testing.T) {
	in := alone(nil)
	in.Host.Bridges = []model.Bridge{{Name: "docker0", Subnets: []model.Subnet{{Prefix: prefix("172.17.0.0/16"), Gateway: addr("172.17.0.1")}}}}
	d, problems := plan.Compute(in)
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	want := strings.TrimSpace(`
5100: from 172.18.0.100/32 iif lo lookup 8100
5110: from all fwmark 0x01000000/0xff000000 lookup 8101
5180: from all fwmark 0xff000000/0xff000000 goto 5199
5190: from 172.18.0.100/32 iif lo lookup 8199
5199: from all nop
32700: from 172.31.0.14/32 iif lo lookup 254 suppress
32701: from 172.31.0.14/32 iif lo lookup 8101
8100: 172.17.0.0/16 dev docker0 src 172.17.0.1
8101: 0.0.0.0/0 dev eth1 via 172.31.0.1
8101: unreachable 0.0.0.0/0 metric 4294967295
8101: 172.31.0.0/20 dev eth1 src 172.31.0.14
8199: 0.0.0.0/0 dev eipnull0
8199: unreachable 0.0.0.0/0 metric 4294967295`)
	if diff := cmp.Diff(want, render(d.Routing)); diff != "" {
		t.Errorf("routing (-want +got):\n%s", diff)
	}
	links := plan.Links{
		Null: true, Grouped: []string{"eth1"},
		Bridges: []plan.BridgeLink{{Name: "br-eip1", NetworkID: "host web", Addrs: []netip.Prefix{prefix("172.18.0.100/32")}}},
	}
	compare := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{})
	if diff := cmp.Diff(links, d.Links, compare); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	own := []netip.Prefix{prefix("172.18.0.100/32")}
	fw := plan.Firewall{
		Mask: model.DefaultMask, NICs: []plan.FirewallNIC{{ID: 1, Name: "eth1", HostReplies: true}}, Primary: "eth0",
		Inside: []string{"docker0", "lo"}, Local: []netip.Addr{addr("172.18.0.100")}, Own: own, Masqueraded: own,
		Sources:  []plan.Source{{Addr: addr("172.18.0.100"), NIC: 1, NICName: "eth1", Address: addr("172.31.0.14")}},
		Forwards: []plan.Forward{{Proto: model.TCP, Addr: addr("172.31.0.14"), Port: 8090, To: netip.MustParseAddrPort("172.18.0.100:8090")}},
	}
	if diff := cmp.Diff(fw, d.Firewall, compare, cmpopts.IgnoreFields(plan.Firewall{}, "Uplinks")); diff != "" {
		t.Errorf("firewall (-want +got):\n%s", diff)
	}
	for _, s := range d.Sysctls {
		if strings.Contains(s.Path, "br-eip1") || strings.Contains(s.Path, "forward") {
			t.Errorf("a switch that no host entry needs: %+v", s)
		}
	}
}

// Where the address is somebody else's, too, it cannot be told whose packets
// those are; and one that is to be removed is held.
func TestHostEntryHeld(t *testing.T) {
	for name, tc := range map[string]struct {
		entry func(*model.HostEntry)
		edit  func(*plan.Snapshot)
		code  model.Code
	}{
		"a NIC's address": {entry: func(e *model.HostEntry) { e.Address = addr("172.31.0.8") }, code: model.CodeAddressClash},
		"in a network": {edit: func(in *plan.Snapshot) {
			in.Networks = append(in.Networks, model.Network{ID: "n", Bridge: "b", Subnet4: prefix("172.18.0.0/16")})
		}, code: model.CodeAddressClash},
		"in a bridge's": {edit: func(in *plan.Snapshot) {
			in.Host.Bridges = []model.Bridge{{Name: "docker0", Subnets: []model.Subnet{{Prefix: prefix("172.18.0.0/16")}}}}
		}, code: model.CodeAddressClash},
		"the NIC is gone": {entry: func(e *model.HostEntry) { e.Options = label("eip.nic=eth7") }, code: model.CodeNICMissing},
		"leaving":         {entry: func(e *model.HostEntry) { e.Leaving = true }},
	} {
		t.Run(name, func(t *testing.T) {
			in := alone(tc.entry)
			if tc.edit != nil {
				tc.edit(&in)
			}
			d, problems := plan.Compute(in)
			has := slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Code == tc.code })
			out := slices.ContainsFunc(d.Firewall.Sources, func(s plan.Source) bool { return s.Verdict != plan.Blocked })
			if out || len(d.Ports) > 0 || (tc.code != "") != has {
				t.Errorf("sources %v, ports %v, problems %v", d.Firewall.Sources, d.Ports, problems)
			}
			if in.Endpoints[0].Addr4 == addr("172.31.0.8") {
				if len(d.Links.Bridges)+len(d.Firewall.Local)+len(d.Firewall.Own)+len(d.Firewall.Sources)+len(d.Routing.Rules) > 0 {
					t.Errorf("the NIC's own packets are judged: %+v", d)
				}
				return
			}
			if len(d.Firewall.Own) == 0 || len(d.Firewall.Local) != 1 || len(d.Links.Bridges) == 0 {
				t.Errorf("not guarded: %+v", d.Firewall)
			}
		})
	}
}

// A program that has joined an entry goes with what is said of that now.
func TestJoinedFollows(t *testing.T) {
	came := []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8090}}
	for name, tc := range map[string]struct {
		entry func(*model.HostEntry)
		edit  func(*plan.Snapshot)
		want  string
	}{
		"as it came": {want: "eth1 172.31.0.14:8090"},
		"the file changes": {
			entry: func(e *model.HostEntry) { e.Options, e.Publishes[0].HostPort = label("eip.nic=eth2"), 9090 },
			want:  "eth2 172.31.0.21:9090",
		},
		"it is rebound": {
			edit: func(in *plan.Snapshot) {
				in.Rebinds = []model.Rebind{{ContainerID: "host web", Options: label("eip.nic=eth0")}}
			},
			want: "eth0 172.31.0.8:8090",
		},
		"both are rebound": {
			edit: func(in *plan.Snapshot) {
				in.Rebinds = []model.Rebind{{ContainerID: "host web", Options: label("eip.nic=eth0")}, {ContainerID: "zz", Options: label("eip.nic=eth2")}}
			},
			want: "eth2 172.31.0.21:8090",
		},
		"it is being removed": {entry: func(e *model.HostEntry) { e.Options, e.Leaving = label("eip.nic=eth2"), true }, want: "eth2 172.31.0.21:8090"},
		"it is gone":          {edit: func(in *plan.Snapshot) { in.Endpoints = in.Endpoints[1:] }, want: "eth1 172.31.0.14:8090"},
	} {
		in := alone(tc.entry)
		in.Networks = append(in.Networks, model.Network{ID: model.ProgramsID, Bridge: model.ProgramsBridge, Subnet4: prefix("10.231.0.0/20"), Gateway4: addr("10.231.0.1")})
		in.Endpoints = append(in.Endpoints, model.Endpoint{
			ID: "zz", NetworkID: model.ProgramsID, Addr4: addr("10.231.0.2"), Phase: model.Joined, As: "web", Options: label("eip.nic=eth1"),
			Container: model.Container{Known: true, ID: "zz", Name: "server"}, Publishes: came,
		})
		if tc.edit != nil {
			tc.edit(&in)
		}
		d, _ := plan.Compute(in)
		got := []string{d.Pins[len(d.Pins)-1].NIC}
		for _, p := range d.Ports {
			if p.Endpoint == "zz" {
				got = append(got, netip.AddrPortFrom(p.Forward.Addr, p.Forward.Port).String())
			}
		}
		if strings.Join(got, " ") != tc.want || len(d.Ports) != 1 || in.Endpoints[len(in.Endpoints)-1].Options[model.KeyNIC] != "eth1" {
			t.Errorf("%s: %s, want %s; ports %v", name, got, tc.want, d.Ports)
		}
	}
}

// While a program has joined it, the entry's ports are the program's.
func TestJoined(t *testing.T) {
	in := alone(nil)
	in.Networks = append(in.Networks, model.Network{ID: model.ProgramsID, Bridge: model.ProgramsBridge, Subnet4: prefix("10.231.0.0/20"), Gateway4: addr("10.231.0.1")})
	program := model.Endpoint{
		ID: "zz", NetworkID: model.ProgramsID, Addr4: addr("10.231.0.2"), Phase: model.Joined, As: "web", Options: label("eip.nic=eth1"),
		Container: model.Container{Known: true, ID: "zz", Name: "server"}, Publishes: in.Endpoints[0].Publishes,
	}
	for phase, want := range map[model.Phase]string{model.Joined: "10.231.0.2:8090", model.Left: "172.18.0.100:8090"} {
		program.Phase = phase
		joined := in
		joined.Endpoints = append(slices.Clone(in.Endpoints), program)
		d, _ := plan.Compute(joined)
		if len(d.Ports) != 1 || d.Ports[0].Forward.To.String() != want {
			t.Errorf("%s: %+v, want them to lead to %s", phase, d.Ports, want)
		}
	}
}
