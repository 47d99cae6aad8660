package plan_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

func TestBridgeOptions(t *testing.T) {
	in := snapshot(endpoint(100, nil), endpoint(101, label("eip.nic=eth1")))
	in.Networks[0].NoICC, in.Networks[0].NoMasquerade = true, true
	in.Networks = append(in.Networks, model.Network{ID: "two", Bridge: "eip_two", Subnet4: prefix("172.20.0.0/16"), Gateway4: addr("172.20.0.1")})
	for i := range in.Endpoints {
		in.Endpoints[i].Veth = "eipv" + in.Endpoints[i].ID
	}
	d, _ := plan.Compute(in)
	compare := cmpopts.EquateComparable(netip.Prefix{})
	if diff := cmp.Diff([]netip.Prefix{prefix("172.19.0.101/32"), prefix("172.20.0.0/16")}, d.Firewall.Masqueraded, compare); diff != "" {
		t.Errorf("masqueraded (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"eip_bridge"}, d.Firewall.Apart); diff != "" {
		t.Errorf("apart (-want +got)\n%s", diff)
	}
	want := []plan.VethPort{{Name: "eipvep100", Bridge: "eip_bridge", Isolated: true}, {Name: "eipvep101", Bridge: "eip_bridge", Isolated: true}}
	if diff := cmp.Diff(want, d.Links.Veths); diff != "" {
		t.Errorf("veths (-want +got)\n%s", diff)
	}
	in.Host.IPv6 = true
	in.Host.Sysctls = map[string]string{model.SysctlBridged4: "1", model.SysctlBridged6: "0"}
	if d, _ := plan.Compute(in); !d.Links.Veths[0].Isolated {
		t.Error("the firewall does not see bridged IPv6, and the ports are not isolated")
	}
	in.Host.Sysctls[model.SysctlBridged6] = "1"
	if d, _ := plan.Compute(in); d.Links.Veths[0].Isolated {
		t.Error("ports are isolated though the firewall sees what is bridged")
	}
}

// TestIsolatedBridge: one without an address has no IPv6 at all, by which nothing
// could be routed.
func TestIsolatedBridge(t *testing.T) {
	for _, tc := range []struct {
		gateway4, gateway6 string
		noIPv6             bool
		routes             []string
	}{
		{"172.19.0.1", "fd00:9::1", false, []string{"172.19.0.0/16", "fd00:9::/64"}},
		{"172.19.0.1", "", true, []string{"172.19.0.0/16"}},
		{"", "fd00:9::1", false, []string{"172.19.0.0/16", "fd00:9::/64"}},
		{"", "", true, []string{"172.19.0.0/16"}},
	} {
		in := snapshot(endpoint(100, nil))
		in.Host.IPv6 = true
		n := &in.Networks[0]
		n.Internal, n.Subnet6 = true, prefix("fd00:9::/64")
		n.Gateway4, _ = netip.ParseAddr(tc.gateway4)
		n.Gateway6, _ = netip.ParseAddr(tc.gateway6)
		d, _ := plan.Compute(in)
		b := d.Links.Bridges[0]
		if b.NoIPv6 != tc.noIPv6 || (len(b.Addrs) > 0) != (tc.gateway4+tc.gateway6 != "") {
			t.Errorf("gateways %q and %q: %+v", tc.gateway4, tc.gateway6, b)
		}
		var routes []string
		for _, r := range d.Routing.Routes {
			if r.Dev == b.Name {
				routes = append(routes, r.Dst.String())
			}
		}
		if diff := cmp.Diff(tc.routes, routes); diff != "" {
			t.Errorf("gateways %q and %q: routes (-want +got)\n%s", tc.gateway4, tc.gateway6, diff)
		}
	}
}

// The bridge routes loopback sources only while a port is published on 127.0.0.1.
func TestLoopbackPorts(t *testing.T) {
	for name, tt := range map[string]struct {
		label, hostIP string
		want          bool
	}{
		"named":                        {hostIP: "127.0.0.1", want: true},
		"named, pinned":                {label: "eip.nic=eth1", hostIP: "127.0.0.2", want: true},
		"all addresses, as none given": {want: true},
		"the pin's, as none given":     {label: "eip.nic=eth1"},
		"a NIC's":                      {hostIP: "172.31.0.8"},
		"held":                         {label: "eip.nic=eth7", hostIP: "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			e := endpoint(100, nil)
			if tt.label != "" {
				e.Container.Labels = label(tt.label)
			}
			p := model.Publish{Proto: model.TCP, HostPort: 8090, Port: 8080}
			if tt.hostIP != "" {
				p.HostIP = addr(tt.hostIP)
			}
			e.Publishes = []model.Publish{p}
			d, _ := plan.Compute(snapshot(e))
			got := false
			for _, s := range d.Sysctls {
				got = got || cmp.Equal(s, plan.Sysctl{Path: "net/ipv4/conf/eip_bridge/route_localnet", From: []string{"0"}, Value: "1"})
			}
			if got != tt.want {
				t.Errorf("route_localnet: %v, want %v; %+v", got, tt.want, d.Sysctls)
			}
		})
	}
}

// TestReversePath: on a locked bridge nothing comes back by a NIC with a strict
// rp_filter, managed or not; nobody else's is touched.
func TestReversePath(t *testing.T) {
	loosened := func(in plan.Snapshot) (out []string) {
		d, _ := plan.Compute(in)
		for _, s := range d.Sysctls {
			if nic, ok := strings.CutSuffix(strings.TrimPrefix(s.Path, "net/ipv4/conf/"), "/rp_filter"); ok {
				out = append(out, nic)
			}
		}
		return out
	}
	in := snapshot(endpoint(100, nil))
	in.Host.NICs[2].Routes = nil
	stock := in
	stock.Networks = []model.Network{{ID: "net", Stock: true, Bridge: "br-stock", Subnet4: prefix("172.19.0.0/16")}}
	strict := in
	strict.Networks = []model.Network{stock.Networks[0]}
	strict.Networks[0].Options = label("eip.strict=true")
	for _, c := range []struct {
		name string
		in   plan.Snapshot
		want []string
	}{
		{"eipnet network", in, []string{"eip_bridge", "eth0", "eth1"}},
		{"strict network", strict, []string{"eth0", "eth1"}},
		{"Docker's own", stock, nil},
	} {
		if diff := cmp.Diff(c.want, loosened(c.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}
