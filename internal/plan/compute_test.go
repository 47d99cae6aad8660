package plan_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

// host is the article's server: two NICs in one subnet, and a third.
func host() model.Host {
	nic := func(name, a string, index int) model.NIC {
		return model.NIC{
			Name: name, Index: index, MAC: fmt.Sprintf("02:42:ac:1f:00:%02x", index), Up: true, Carrier: true,
			Addrs:    []netip.Prefix{prefix(a)},
			Routes:   []model.Route{{Dst: prefix(a).Masked(), Src: prefix(a).Addr()}},
			Gateway4: model.Gateway{Addr: addr("172.31.0.1"), Source: "route"},
		}
	}
	h := model.Host{NICs: []model.NIC{nic("eth0", "172.31.0.8/20", 2), nic("eth1", "172.31.0.14/20", 3), nic("eth2", "172.31.0.21/20", 4)}}
	h.NICs[0].Primary = true
	return h
}

func snapshot(endpoints ...model.Endpoint) plan.Snapshot {
	return plan.Snapshot{
		Settings: plan.Settings{
			Mask: model.DefaultMask, HostReplies: plan.RepliesSecondary,
			EIPs: map[netip.Addr]netip.Addr{addr("119.26.38.75"): addr("172.31.0.14")},
		},
		Host:      host(),
		Networks:  []model.Network{{ID: "net", Bridge: "eip_bridge", Subnet4: prefix("172.19.0.0/16"), Gateway4: addr("172.19.0.1")}},
		Endpoints: endpoints,
		DockerUp:  true,
	}
}

func endpoint(n int, labels map[string]string) model.Endpoint {
	return model.Endpoint{
		ID: fmt.Sprintf("ep%03d", n), NetworkID: "net", Addr4: netip.AddrFrom4([4]byte{172, 19, 0, byte(n)}), Phase: model.Joined,
		Container: model.Container{Known: true, ID: fmt.Sprintf("c%03d", n), Name: fmt.Sprintf("app%d", n), Labels: labels},
	}
}

func label(kv ...string) map[string]string {
	m := make(map[string]string)
	for _, s := range kv {
		k, v, _ := strings.Cut(s, "=")
		m[k] = v
	}
	return m
}

func TestPinDecision(t *testing.T) {
	for _, tc := range []struct {
		name    string
		network map[string]string
		edit    func(*model.Endpoint)
		labels  map[string]string
		want    plan.Pin
		source  *plan.Source
		code    model.Code
	}{
		{
			name: "nothing said: unpinned", want: plan.Pin{State: plan.StateUnpinned},
			source: &plan.Source{Verdict: plan.ViaHost},
		},
		{
			name: "label", labels: label("eip.nic=eth1"),
			want:   plan.Pin{State: plan.StatePinned, From: model.FromLabel, NIC: "eth1", Addr4: addr("172.31.0.14"), Public: addr("119.26.38.75")},
			source: &plan.Source{Verdict: plan.Pinned, NIC: 1, NICName: "eth1", Address: addr("172.31.0.14")},
		},
		{
			name: "endpoint option beats label beats network option", labels: label("eip.nic=eth1"), network: label("eip.nic=eth2"),
			edit:   func(e *model.Endpoint) { e.Options = label("eip.nic=eth0") },
			want:   plan.Pin{State: plan.StatePinned, From: model.FromEndpoint, NIC: "eth0", Addr4: addr("172.31.0.8")},
			source: &plan.Source{Verdict: plan.Pinned, NIC: 1, NICName: "eth0", Address: addr("172.31.0.8")},
		},
		{
			name: "network option", network: label("eip.nic=eth2"),
			want:   plan.Pin{State: plan.StatePinned, From: model.FromNetwork, NIC: "eth2", Addr4: addr("172.31.0.21")},
			source: &plan.Source{Verdict: plan.Pinned, NIC: 1, NICName: "eth2", Address: addr("172.31.0.21")},
		},
		{
			name: "by EIP", labels: label("eip.public=119.26.38.75"),
			want:   plan.Pin{State: plan.StatePinned, From: model.FromLabel, NIC: "eth1", Addr4: addr("172.31.0.14"), Public: addr("119.26.38.75")},
			source: &plan.Source{Verdict: plan.Pinned, NIC: 1, NICName: "eth1", Address: addr("172.31.0.14")},
		},
		{
			name: "an EIP nobody mapped is held", labels: label("eip.public=1.2.3.4"),
			want: plan.Pin{State: plan.StateBlocked, From: model.FromLabel}, code: model.CodeEIPUnknown,
		},
		{
			name: "labels not known: pending, though the network has an option", network: label("eip.nic=eth2"),
			edit: func(e *model.Endpoint) { e.Container = model.Container{} },
			want: plan.Pin{State: plan.StatePending, From: model.FromNetwork}, source: &plan.Source{Verdict: plan.Pending}, code: model.CodePending,
		},
		{
			name: "labels not known, but an endpoint option decides",
			edit: func(e *model.Endpoint) {
				e.Container, e.Options = model.Container{}, label("eip.nic=eth1")
			},
			want:   plan.Pin{State: plan.StatePinned, From: model.FromEndpoint, NIC: "eth1", Addr4: addr("172.31.0.14"), Public: addr("119.26.38.75")},
			source: &plan.Source{Verdict: plan.Pinned, NIC: 1, NICName: "eth1", Address: addr("172.31.0.14")},
		},
		{
			name: "a NIC that is gone holds", labels: label("eip.nic=eth7"),
			want: plan.Pin{State: plan.StateBlocked, From: model.FromLabel}, code: model.CodeNICMissing,
		},
		{
			name: "a NIC that is gone with fallback host", labels: label("eip.nic=eth7", "eip.fallback=host"),
			want:   plan.Pin{State: plan.StateUnpinned, From: model.FromLabel, InsteadOf: "eip.nic=eth7"},
			source: &plan.Source{Verdict: plan.ViaHost}, code: model.CodeFailedOver,
		},
		{
			name: "a bad label holds", labels: label("eip.nci=eth1"),
			want: plan.Pin{State: plan.StateBlocked}, code: model.CodeBadSelector,
		},
		{
			name: "created: pending", edit: func(e *model.Endpoint) { e.Phase = model.Created },
			want: plan.Pin{State: plan.StatePending}, source: &plan.Source{Verdict: plan.Pending},
		},
		{
			name: "left: a tombstone is refused", labels: label("eip.nic=eth1"), edit: func(e *model.Endpoint) { e.Phase = model.Left },
			want: plan.Pin{State: plan.StateReleased},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := endpoint(100, tc.labels)
			if tc.edit != nil {
				tc.edit(&e)
			}
			in := snapshot(e)
			in.Networks[0].Options = tc.network
			d, problems := plan.Compute(in)
			tc.want.Endpoint = e.ID
			if diff := cmp.Diff(tc.want, d.Pins[0], cmpopts.IgnoreFields(plan.Pin{}, "Why", "Selector"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("pin (-want +got):\n%s", diff)
			}
			if tc.source == nil {
				tc.source = &plan.Source{Verdict: plan.Blocked}
			}
			tc.source.Addr = e.Addr4
			want := []plan.Source{*tc.source}
			if diff := cmp.Diff(want, d.Firewall.Sources, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
			if has := slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Code == tc.code }); (tc.code != "") != has {
				t.Errorf("problem %q: got %v", tc.code, problems)
			}
		})
	}
}

func TestPublishedAddress(t *testing.T) {
	pub := func(s string) model.Publish {
		p := model.Publish{Proto: model.TCP, HostPort: 8090, Port: 8080}
		if s != "" {
			p.HostIP = addr(s)
		}
		return p
	}
	for _, tc := range []struct {
		name    string
		labels  map[string]string
		publish model.Publish
		want    string
		managed []string
	}{
		{"pinned, no host IP: the NIC's address only", label("eip.nic=eth1"), pub(""), "172.31.0.14:8090", []string{"eth1"}},
		{"pinned, another NIC's address", label("eip.nic=eth1"), pub("172.31.0.8"), "172.31.0.8:8090", []string{"eth0", "eth1"}},
		{"pinned, all addresses", label("eip.nic=eth1"), pub("0.0.0.0"), "0.0.0.0:8090", []string{"eth0", "eth1", "eth2"}},
		{"unpinned, no host IP: every address, every NIC managed", nil, pub(""), "0.0.0.0:8090", []string{"eth0", "eth1", "eth2"}},
		{"held: not published", label("eip.nic=eth7"), pub(""), "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := endpoint(100, tc.labels)
			e.Publishes = []model.Publish{tc.publish}
			d, _ := plan.Compute(snapshot(e))
			var got string
			if len(d.Firewall.Forwards) > 0 {
				f := d.Firewall.Forwards[0]
				got = netip.AddrPortFrom(f.Addr, f.Port).String()
			}
			if got != tc.want {
				t.Errorf("published at %q, want %q", got, tc.want)
			}
			if diff := cmp.Diff(tc.managed, d.Links.Grouped, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("managed NICs (-want +got):\n%s", diff)
			}
		})
	}
}

// Two networks of one container may be asked to publish the same: the first
// does, until it does not any more. Two endpoints on one network are a container
// and its predecessor, and who is first is the reservation's to say.
func TestPublishedTwice(t *testing.T) {
	two := func(network, container string) []plan.Port {
		a, b := endpoint(100, label("eip.nic=eth1")), endpoint(101, label("eip.nic=eth1"))
		b.NetworkID, b.Container.ID = network, container
		for _, e := range []*model.Endpoint{&a, &b} {
			e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
		}
		in := snapshot(a, b)
		in.Networks = append(in.Networks, model.Network{ID: "two", Bridge: "eip_two", Subnet4: prefix("172.20.0.0/16"), Gateway4: addr("172.20.0.1")})
		d, _ := plan.Compute(in)
		return d.Ports
	}
	for name, tc := range map[string]struct {
		network, container string
		want               int
	}{
		"one container on two networks": {"two", "c100", 1},
		"its predecessor":               {"net", "c100", 2},
		"two containers":                {"two", "c101", 2},
	} {
		if got := two(tc.network, tc.container); len(got) != tc.want || got[0].Endpoint != "ep100" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The rules and tables are those of docs/packet-path.md and of the doc comment of routing.
func TestRouting(t *testing.T) {
	e0, e1 := endpoint(100, label("eip.nic=eth0")), endpoint(101, label("eip.nic=eth1"))
	d, _ := plan.Compute(snapshot(e0, e1))
	want := strings.TrimSpace(`
5100: from all iif eip_bridge lookup 8100
5110: from all fwmark 0x01000000/0xff000000 lookup 8101
5110: from all fwmark 0x02000000/0xff000000 lookup 8102
5180: from all fwmark 0xff000000/0xff000000 goto 5199
5190: from all iif eip_bridge lookup 8199
5199: from all nop
32700: from 172.31.0.14/32 iif lo lookup 254 suppress
32701: from 172.31.0.14/32 iif lo lookup 8102
8100: 172.19.0.0/16 dev eip_bridge src 172.19.0.1
8101: 0.0.0.0/0 dev eth0 via 172.31.0.1
8101: unreachable 0.0.0.0/0 metric 4294967295
8101: 172.31.0.0/20 dev eth0 src 172.31.0.8
8102: 0.0.0.0/0 dev eth1 via 172.31.0.1
8102: unreachable 0.0.0.0/0 metric 4294967295
8102: 172.31.0.0/20 dev eth1 src 172.31.0.14
8199: 0.0.0.0/0 dev eipnull0
8199: unreachable 0.0.0.0/0 metric 4294967295`)
	if diff := cmp.Diff(want, render(d.Routing)); diff != "" {
		t.Errorf("routing (-want +got):\n%s", diff)
	}
}

func render(r plan.Routing) string {
	var b strings.Builder
	for _, u := range r.Rules {
		fmt.Fprintf(&b, "%d: from ", u.Priority)
		if u.From.IsValid() {
			fmt.Fprint(&b, u.From)
		} else {
			b.WriteString("all")
		}
		if u.Mask != 0 {
			fmt.Fprintf(&b, " fwmark %v/%v", u.Mark, u.Mask)
		}
		if u.Iif != "" {
			fmt.Fprint(&b, " iif ", u.Iif)
		}
		switch u.Action {
		case plan.Goto:
			fmt.Fprint(&b, " goto ", u.Target)
		case plan.Nop:
			b.WriteString(" nop")
		default:
			fmt.Fprint(&b, " lookup ", u.Table)
		}
		if u.SuppressSpecific {
			b.WriteString(" suppress")
		}
		b.WriteByte('\n')
	}
	for _, o := range r.Routes {
		fmt.Fprintf(&b, "%d: ", o.Table)
		if o.Unreachable {
			b.WriteString("unreachable ")
		}
		fmt.Fprint(&b, o.Dst)
		if o.Dev != "" {
			fmt.Fprint(&b, " dev ", o.Dev)
		}
		if o.Via.IsValid() {
			fmt.Fprint(&b, " via ", o.Via)
		}
		if o.Src.IsValid() {
			fmt.Fprint(&b, " src ", o.Src)
		}
		if o.Metric != 0 {
			fmt.Fprint(&b, " metric ", o.Metric)
		}
		b.WriteByte('\n')
	}
	return strings.TrimSpace(b.String())
}

func TestNothingAskedNothingTouched(t *testing.T) {
	in := snapshot()
	in.Networks = nil
	d, problems := plan.Compute(in)
	if len(problems) > 0 {
		t.Errorf("problems on an untouched host: %v", problems)
	}
	want := plan.Desired{IDs: map[string]model.NICID{}, Firewall: plan.Firewall{Mask: model.DefaultMask}}
	if diff := cmp.Diff(want, d, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
}

func TestPrimaryIsNeverMatchedBySource(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, _ := plan.Compute(randomSnapshot(t))
		for _, r := range d.Routing.Rules {
			if r.From.IsValid() && r.From.Contains(addr("172.31.0.8")) && r.From.Bits() == 32 {
				t.Fatalf("rule by the primary's address: %+v", r)
			}
		}
		for _, n := range d.Firewall.NICs {
			if n.Name == "eth0" && n.HostReplies {
				t.Fatal("the primary's host sockets are marked")
			}
		}
	})
}

// A port on all addresses is answered by each NIC through that NIC; but a link
// without a gateway keeps the host's routing, and only named NICs' host sockets
// are touched.
func TestWildcardPublish(t *testing.T) {
	e := endpoint(100, nil)
	e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
	in := snapshot(e)
	in.Host.NICs = append(in.Host.NICs, model.NIC{Name: "vpn0", Index: 9, Up: true, Carrier: true, Addrs: []netip.Prefix{prefix("10.99.0.1/30")}})
	d, problems := plan.Compute(in)
	if diff := cmp.Diff([]string{"eth0", "eth1", "eth2"}, d.Links.Grouped); diff != "" {
		t.Errorf("managed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"eth0", "eth1", "eth2", "vpn0"}, d.Asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	for _, r := range d.Routing.Rules {
		if r.From.IsValid() {
			t.Errorf("a rule by source though nobody named a NIC: %+v", r)
		}
	}
	for _, n := range d.Firewall.NICs {
		if n.HostReplies {
			t.Errorf("host sockets of %s are marked though nobody named it", n.Name)
		}
	}
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

func TestIDsAreStable(t *testing.T) {
	in := snapshot(endpoint(100, label("eip.nic=eth2")))
	in.IDs = map[string]model.NICID{"eth2": 7, "gone0": 1}
	in.Endpoints = append(in.Endpoints, endpoint(101, label("eip.nic=eth1")))
	d, _ := plan.Compute(in)
	want := map[string]model.NICID{"eth2": 7, "gone0": 1, "eth1": 2}
	if diff := cmp.Diff(want, d.IDs); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
}

// Whatever the input: every live source is unique, everything pinned has its
// NIC managed with an ID, and a source leaves with an address of its NIC.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := randomSnapshot(t)
		d, _ := plan.Compute(in)
		again, _ := plan.Compute(in)
		if diff := cmp.Diff(d, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})); diff != "" {
			t.Fatalf("not deterministic:\n%s", diff)
		}
		seen := make(map[netip.Addr]bool)
		for _, s := range d.Firewall.Sources {
			if seen[s.Addr] {
				t.Fatalf("source %v twice", s.Addr)
			}
			seen[s.Addr] = true
			if s.Verdict != plan.Pinned {
				continue
			}
			if d.IDs[s.NICName] != s.NIC || s.NIC == 0 || !slices.Contains(d.Links.Grouped, s.NICName) {
				t.Fatalf("source %+v by a NIC that is not managed", s)
			}
			nic, ok := in.Host.NIC(s.NICName)
			if !ok || !nic.Has(s.Address) {
				t.Fatalf("source %+v with an address that is not its NIC's", s)
			}
		}
		for i, p := range d.Pins {
			if p.Endpoint != in.Endpoints[i].ID {
				t.Fatal("pins are not in the endpoints' order")
			}
			if held := p.State == plan.StateBlocked || p.State == plan.StateReleased; held {
				for _, f := range d.Ports {
					if f.Endpoint == p.Endpoint {
						t.Fatalf("held endpoint %s is published", p.Endpoint)
					}
				}
			}
		}
	})
}

func randomSnapshot(t *rapid.T) plan.Snapshot {
	in := snapshot()
	n := rapid.IntRange(0, 12).Draw(t, "endpoints")
	selectors := []map[string]string{nil, label("eip.nic=eth0"), label("eip.nic=eth1"), label("eip.nic=ETH2"), label("eip.nic=eth9"), label("eip.ip=172.31.0.14"), label("eip.bad=1"), label("eip.nic=eth9", "eip.fallback=host")}
	pick := func(what string) map[string]string { return rapid.SampledFrom(selectors).Draw(t, what) }
	for i := range n {
		e := endpoint(rapid.IntRange(2, 20).Draw(t, "address"), pick("label"))
		e.ID = fmt.Sprintf("ep%03d", i)
		e.Options = pick("option")
		e.Phase = rapid.SampledFrom([]model.Phase{model.Created, model.Joined, model.Joined, model.Left}).Draw(t, "phase")
		e.Container.Known = rapid.Bool().Draw(t, "known")
		if rapid.Bool().Draw(t, "published") {
			e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: uint16(8000 + i), Port: 80}}
		}
		in.Endpoints = append(in.Endpoints, e)
	}
	in.Networks[0].Options = pick("network")
	in.Host.NICs[1].Up = rapid.Bool().Draw(t, "eth1 up")
	return in
}

func BenchmarkCompute10000(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	in := snapshot()
	for i := range 10000 {
		e := endpoint(0, label(fmt.Sprintf("eip.nic=eth%d", r.IntN(3))))
		e.ID = fmt.Sprintf("ep%05d", i)
		e.Addr4 = netip.AddrFrom4([4]byte{172, 19, byte(i >> 8), byte(i)})
		in.Endpoints = append(in.Endpoints, e)
	}
	for b.Loop() {
		plan.Compute(in)
	}
}

// Labels that can have no effect are a problem that says what to do instead.
func TestStrays(t *testing.T) {
	in := plan.Snapshot{Settings: plan.Settings{Mask: model.DefaultMask, NoCgroups: "no cgroups"}}
	for mode, want := range map[string]string{
		"host":         "eipnet exec",
		"none":         "put it on a bridge or eipnet network",
		"container:id": "label the container whose network it shares",
	} {
		in.Strays = []model.Stray{{Container: model.Container{Known: true, Name: "web"}, Mode: mode}}
		_, problems := plan.Compute(in)
		if len(problems) != 1 || problems[0].Code != model.CodeNoEndpoint || !strings.Contains(problems[0].Fix, want) {
			t.Errorf("%s: %v, want it to say %q", mode, problems, want)
		}
	}
}
