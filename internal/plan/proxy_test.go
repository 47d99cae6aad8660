package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestProxied: what comes over IPv6 to ::1, or for a container without IPv6, is a
// proxy's; all else is NAT's.
func TestProxied(t *testing.T) {
	six := func(in *plan.Snapshot) {
		in.Endpoints[0].Addr6 = addr("fd00:9::2")
		in.Networks[0].Subnet6, in.Networks[0].Gateway6 = prefix("fd00:9::/64"), addr("fd00:9::1")
	}
	pinned := func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels = label("eip.nic=eth1") }
	at := func(host string) func(*plan.Snapshot) {
		return func(in *plan.Snapshot) { in.Endpoints[0].Publishes[0].HostIP = addr(host) }
	}
	for _, tc := range []struct {
		name  string
		edits []func(*plan.Snapshot)
		want  []string // address → target, what is a proxy's
	}{
		{"no IPv6", nil, []string{"0.0.0.0→172.19.0.2", "::→172.19.0.2 all"}},
		{"IPv6", []func(*plan.Snapshot){six}, []string{"0.0.0.0→172.19.0.2", "::→fd00:9::2 loopback"}},
		{"no IPv6, pinned", []func(*plan.Snapshot){pinned}, []string{"172.31.0.14→172.19.0.2", "2001:db8::14→172.19.0.2 all"}},
		{"IPv6, pinned", []func(*plan.Snapshot){pinned, six}, []string{"172.31.0.14→172.19.0.2", "2001:db8::14→fd00:9::2"}},
		{
			"no IPv6, pinned with eip.ip6",
			[]func(*plan.Snapshot){pinned, func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels["eip.ip6"] = "2001:db8::15" }},
			[]string{"172.31.0.14→172.19.0.2", "2001:db8::15→172.19.0.2 all"},
		},
		{"no IPv6, pinned to the NIC's other address", []func(*plan.Snapshot){func(in *plan.Snapshot) {
			in.Endpoints[0].Container.Labels = label("eip.ip=172.31.0.15")
		}}, []string{"172.31.0.15→172.19.0.2"}},
		{
			"no IPv6, pinned by an IPv6 address",
			[]func(*plan.Snapshot){func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels = label("eip.ip=2001:db8::15") }},
			[]string{"172.31.0.14→172.19.0.2", "2001:db8::15→172.19.0.2 all"},
		},
		{
			"no IPv6, pinned to a NIC without an IPv6 gateway",
			[]func(*plan.Snapshot){pinned, func(in *plan.Snapshot) { in.Host.NICs[1].Gateway6 = model.Gateway{} }},
			[]string{"172.31.0.14→172.19.0.2"},
		},
		{"IPv6 on an internal network", []func(*plan.Snapshot){func(in *plan.Snapshot) {
			o := endpoint(3, nil)
			o.Container.ID, o.NetworkID, o.Addr4, o.Addr6 = "c002", "six", netip.Addr{}, addr("fd00:10::2")
			in.Endpoints = append(in.Endpoints, o)
			in.Networks = append(in.Networks, model.Network{ID: "six", Bridge: "eip_six", Internal: true, Subnet6: prefix("fd00:10::/64"), Gateway6: addr("fd00:10::1")})
		}}, []string{"0.0.0.0→172.19.0.2", "::→172.19.0.2 all"}},
		{
			"no IPv6, pinned to a NIC without it",
			[]func(*plan.Snapshot){func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels = label("eip.nic=eth2") }},
			[]string{"172.31.0.21→172.19.0.2"},
		},
		{"IPv6, at ::1", []func(*plan.Snapshot){six, at("::1")}, []string{"::1→fd00:9::2 all"}},
		{"no IPv6, at ::1, pinned", []func(*plan.Snapshot){pinned, at("::1")}, []string{"::1→172.19.0.2 all"}},
		{"no IPv6, at a NIC's", []func(*plan.Snapshot){at("2001:db8::14")}, []string{"2001:db8::14→172.19.0.2 all"}},
		{"IPv6, at a NIC's", []func(*plan.Snapshot){six, at("2001:db8::14")}, []string{"2001:db8::14→fd00:9::2"}},
		{"no IPv6, at 0.0.0.0", []func(*plan.Snapshot){at("0.0.0.0")}, []string{"0.0.0.0→172.19.0.2"}},
		{"no IPv6, UDP", []func(*plan.Snapshot){func(in *plan.Snapshot) { in.Endpoints[0].Publishes[0].Proto = model.UDP }}, []string{"0.0.0.0→172.19.0.2", "::→172.19.0.2 all"}},
		{"no IPv6, SCTP", []func(*plan.Snapshot){func(in *plan.Snapshot) { in.Endpoints[0].Publishes[0].Proto = model.SCTP }}, []string{"0.0.0.0→172.19.0.2"}},
		{"IPv6, SCTP", []func(*plan.Snapshot){six, func(in *plan.Snapshot) { in.Endpoints[0].Publishes[0].Proto = model.SCTP }}, []string{"0.0.0.0→172.19.0.2", "::→fd00:9::2"}},
		{"a host without IPv6", []func(*plan.Snapshot){func(in *plan.Snapshot) { in.Host.IPv6 = false }}, []string{"0.0.0.0→172.19.0.2"}},
		{"a host without IPv6, pinned", []func(*plan.Snapshot){pinned, func(in *plan.Snapshot) { in.Host.IPv6 = false }}, []string{"172.31.0.14→172.19.0.2"}},
		{"on a network of Docker's", []func(*plan.Snapshot){func(in *plan.Snapshot) { in.Networks[0].Stock = true }}, nil},
		{"held", []func(*plan.Snapshot){func(in *plan.Snapshot) { in.Endpoints[0].Container.Labels = label("eip.nic=eth7") }}, nil},
		{"IPv6 on another network", []func(*plan.Snapshot){func(in *plan.Snapshot) {
			o := endpoint(3, nil)
			o.Container.ID, o.NetworkID, o.Addr4, o.Addr6 = "c002", "six", netip.Addr{}, addr("fd00:10::2")
			o.Publishes = in.Endpoints[0].Publishes
			in.Endpoints = append(in.Endpoints, o)
			in.Networks = append(in.Networks, model.Network{ID: "six", Bridge: "eip_six", Subnet6: prefix("fd00:10::/64"), Gateway6: addr("fd00:10::1")})
		}}, []string{"0.0.0.0→172.19.0.2", "::→fd00:10::2 loopback"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := endpoint(2, map[string]string{})
			e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
			in := snapshot(e)
			in.Host.IPv6 = true
			in.Host.NICs[1].Addrs = append(in.Host.NICs[1].Addrs, prefix("172.31.0.15/20"), prefix("2001:db8::14/64"), prefix("2001:db8::15/64"))
			in.Host.NICs[1].Gateway6 = model.Gateway{Addr: addr("2001:db8::1")}
			for _, edit := range tc.edits {
				edit(&in)
			}
			d, _ := plan.Compute(in)
			var got []string
			nat := 0
			for _, p := range d.Ports {
				how := map[plan.Proxy]string{plan.ProxyAll: " all", plan.ProxyLoopback: " loopback"}[p.Proxy]
				got = append(got, fmt.Sprintf("%v→%v%s", p.Forward.Addr, p.Forward.To.Addr(), how))
				if p.Proxy != plan.ProxyAll {
					nat++
				}
				// Answers leave by the NIC that was asked, as the connection remembers it.
				remembered := p.Proxy == plan.ProxyAll && !p.Forward.Addr.IsLoopback()
				if remembered != slices.Contains(d.Firewall.Proxied, plan.Listener{Addr: p.Forward.Addr, Proto: p.Forward.Proto, Port: p.Forward.Port}) {
					t.Errorf("%v: told to the firewall as a proxy's: %v", p, d.Firewall.Proxied)
				}
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("ports (-want +got)\n%s", diff)
			}
			if len(d.Firewall.Forwards) != nat {
				t.Errorf("NAT has %v of %v", d.Firewall.Forwards, d.Ports)
			}
		})
	}
}

// TestProxyYields: at an IPv6 address that nobody asked for, another container's
// port that NAT has goes first.
func TestProxyYields(t *testing.T) {
	first, second := endpoint(2, label("eip.nic=eth1")), endpoint(3, label("eip.ip=172.31.0.15"))
	second.Addr6 = addr("fd00:9::3")
	for _, e := range []*model.Endpoint{&first, &second} {
		e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
	}
	in := snapshot(first, second)
	in.Host.IPv6 = true
	in.Networks[0].Subnet6, in.Networks[0].Gateway6 = prefix("fd00:9::/64"), addr("fd00:9::1")
	eth1 := &in.Host.NICs[1]
	eth1.Addrs = append(eth1.Addrs, prefix("172.31.0.15/20"), prefix("2001:db8::14/64"))
	eth1.Gateway6 = model.Gateway{Addr: addr("2001:db8::1")}
	d, _ := plan.Compute(in)
	var got []string
	for _, p := range d.Ports {
		got = append(got, fmt.Sprintf("%v→%v", p.Forward.Addr, p.Forward.To.Addr()))
	}
	want := []string{"172.31.0.14→172.19.0.2", "172.31.0.15→172.19.0.3", "2001:db8::14→fd00:9::3"}
	if diff := cmp.Diff(want, got); diff != "" || len(d.Firewall.Proxied) > 0 {
		t.Errorf("ports (-want +got)\n%s, proxied %v", diff, d.Firewall.Proxied)
	}
	// All addresses are what an unpinned one asked for: that is a clash, which the reservation tells.
	for i := range in.Endpoints {
		in.Endpoints[i].Container.Labels = nil
	}
	in.Endpoints[1].Publishes[0].HostIP = addr("::")
	if d, _ := plan.Compute(in); len(d.Ports) != 3 {
		t.Errorf("unpinned: %v", d.Ports)
	}
}

// TestSparePortsAreNotServed: who is not decided yet has no proxy.
func TestSparePortsAreNotServed(t *testing.T) {
	e := endpoint(2, nil)
	e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
	in := snapshot(e)
	in.Host.IPv6, in.DockerUp = true, false
	d, _ := plan.Compute(in)
	if len(d.Spare) != 2 || d.Spare[0].Proxy+d.Spare[1].Proxy != plan.NoProxy {
		t.Errorf("%+v", d.Spare)
	}
}
