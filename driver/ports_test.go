package driver_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
)

func TestPublish(t *testing.T) {
	ip := netip.MustParseAddr
	tests := []struct {
		name  string
		ports any
		want  []model.Publish
	}{
		{"absent", nil, nil},
		{"empty", ports(), nil},
		{"one", ports(tcp(8090, 8080)), []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}},
		{"HostPortEnd left out", []object{{"Proto": 17, "Port": 53, "HostPort": 5353}}, []model.Publish{{Proto: model.UDP, HostPort: 5353, Port: 53}}},
		{
			"sorted, doubles once, both protocols",
			ports(tcp(443, 8443), binding(17, "", 53, 53, 53), tcp(80, 8080), binding(6, "", 53, 53, 53), tcp(80, 8080), tcp(81, 8080)),
			[]model.Publish{
				{Proto: model.TCP, HostPort: 53, Port: 53},
				{Proto: model.UDP, HostPort: 53, Port: 53},
				{Proto: model.TCP, HostPort: 80, Port: 8080},
				{Proto: model.TCP, HostPort: 81, Port: 8080},
				{Proto: model.TCP, HostPort: 443, Port: 8443},
			},
		},
		{
			"host addresses",
			ports(binding(6, "172.31.0.14", 80, 80, 80), binding(6, "0.0.0.0", 81, 81, 81), binding(6, "::ffff:172.31.0.8", 80, 80, 80)),
			[]model.Publish{
				{Proto: model.TCP, HostIP: ip("172.31.0.8"), HostPort: 80, Port: 80},
				{Proto: model.TCP, HostIP: ip("172.31.0.14"), HostPort: 80, Port: 80},
				{Proto: model.TCP, HostIP: ip("0.0.0.0"), HostPort: 81, Port: 81},
			},
		},
		{
			"an EIP stands for its private address",
			ports(binding(6, "119.26.38.75", 80, 80, 80)),
			[]model.Publish{{Proto: model.TCP, HostIP: ip("172.31.0.14"), HostPort: 80, Port: 80}},
		},
		{
			"loopback",
			ports(binding(17, "127.0.0.1", 53, 53, 53)),
			[]model.Publish{{Proto: model.UDP, HostIP: ip("127.0.0.1"), HostPort: 53, Port: 53}},
		},
		{
			"SCTP",
			ports(binding(132, "", 5000, 5000, 5000)),
			[]model.Publish{{Proto: model.SCTP, HostPort: 5000, Port: 5000}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.network(nil)
			h.joined(epA, "172.19.0.2/16")
			for range 2 {
				h.ok("ProgramExternalConnectivity", programReq(epA, tt.ports))
				if diff := cmp.Diff(tt.want, h.endpoint(epA).Publishes, compareAddrs); diff != "" {
					t.Errorf("published (-want +got)\n%s", diff)
				}
			}
		})
	}
}

func TestPublishRefuses(t *testing.T) {
	tests := []struct {
		name  string
		ports any
		want  string
	}{
		{"protocol", ports(binding(33, "", 5000, 5000, 5000)), "protocol 33 cannot be published: only TCP, UDP and SCTP can"},
		{"no container port", ports(tcp(80, 0)), "publishing a port: the container's port is missing"},
		{"backwards", ports(binding(6, "", 90, 80, 80)), "publishing port 80: 90-80 is no range of host ports"},
		{"no start", ports(binding(6, "", 0, 80, 80)), "publishing port 80: 0-80 is no range of host ports"},
		{"no list", "8080:80", "reading the port map: json: cannot unmarshal string into Go value of type []driver.portBinding"},
		{"too large", ports(tcp(70000, 80)), "reading the port map: json: cannot unmarshal number 70000 into Go struct field portBinding.HostPort of type uint16"},
		{"no address", ports(binding(6, "eth1", 80, 80, 80)), `host address "eth1" is no address`},
		{"not here", ports(binding(6, "203.0.113.7", 80, 80, 80)), "host address 203.0.113.7 is neither on this host nor a known EIP (--eip); its addresses: 172.17.0.1, 172.31.0.8, 172.31.0.14"},
		{"IPv6's loopback of a v4 container", ports(binding(6, "::1", 80, 80, 80)), "publishing port 80 on ::1: the container has no IPv6 address on this network"},
		{"v6 of a v4 container", ports(binding(6, "::", 80, 80, 80)), "publishing port 80 on ::: the container has no IPv6 address on this network"},
		{"twice", ports(tcp(80, 80), tcp(80, 81)), "Bind for 0.0.0.0:80 failed: port is already allocated"},
		{"twice on one address", ports(binding(17, "172.31.0.8", 80, 80, 80), binding(17, "0.0.0.0", 80, 80, 81)), "Bind for 0.0.0.0:80 failed: port is already allocated"},
		{"taken", ports(tcp(8090, 8080)), "Bind for 172.31.0.14:8090 failed: port is already allocated"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.network(nil)
			h.joined(epA, "172.19.0.2/16")
			h.Core.Take(model.Publish{Proto: model.TCP, HostPort: 8090})
			h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(443, 443))))
			h.fails("ProgramExternalConnectivity", programReq(epA, tt.ports), tt.want)
			for _, p := range h.endpoint(epA).Publishes {
				if p.HostPort != 443 {
					t.Errorf("stored: %v", p)
				}
			}
		})
	}
}

func TestPublishOfUnknownOrUnjoinedEndpoints(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.ok("ProgramExternalConnectivity", programReq(epA, nil))
	h.fails("ProgramExternalConnectivity", programReq(epA, ports(tcp(80, 80))), "endpoint aaaaaaaaaaaa is not known to eipnet (is its state gone?): start the container again")
	h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
	h.fails("ProgramExternalConnectivity", programReq(epA, ports(tcp(80, 80))), "publishing ports of endpoint aaaaaaaaaaaa: it is not connected")
}

func TestPublishWhenThePassFails(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	h.Core.Fail(errors.New("kernel says no"))
	h.fails("ProgramExternalConnectivity", programReq(epA, ports(tcp(80, 80))), "publishing ports of endpoint aaaaaaaaaaaa: kernel says no")
	if got := h.endpoint(epA).Publishes; len(got) > 0 {
		t.Errorf("stored: %v", got)
	}

	h.Labels.Set(false, false)
	h.Core.Fail(errors.New("kernel says no"))
	h.ok("ProgramExternalConnectivity", programReq(epA, ports(binding(6, "203.0.113.7", 80, 80, 80))))
	if got := h.endpoint(epA).Publishes; len(got) != 1 {
		t.Errorf("at boot, stored: %v", got)
	}
}

func TestPublishReplaces(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	hostPorts := func() (got []uint16) {
		for _, p := range h.endpoint(epA).Publishes {
			got = append(got, p.HostPort)
		}
		return got
	}
	h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(8090, 80), binding(6, "", 0, 0, 80), binding(6, "", 42200, 42209, 80))))
	first := hostPorts()
	if len(first) != 3 || first[0] != 8090 || first[1] < 42200 || first[1] > 42209 || first[2] == 0 || slices.Contains(first[:2], first[2]) {
		t.Fatalf("host ports %v", first)
	}
	h.ok("ProgramExternalConnectivity", programReq(epA, ports(binding(6, "", 42200, 42209, 80), binding(6, "", 0, 0, 80), tcp(8090, 80))))
	if diff := cmp.Diff(first, hostPorts()); diff != "" {
		t.Errorf("again (-want +got)\n%s", diff)
	}
	h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(443, 443))))
	if diff := cmp.Diff([]uint16{443}, hostPorts()); diff != "" {
		t.Errorf("replaced (-want +got)\n%s", diff)
	}
	passes := h.Core.Passes()
	h.ok("RevokeExternalConnectivity", ref(netID, epA))
	h.ok("RevokeExternalConnectivity", ref(netID, epA))
	if got := hostPorts(); len(got) > 0 || h.Core.Passes() != passes+1 {
		t.Errorf("revoked: %v in %d passes", got, h.Core.Passes()-passes)
	}
}

// Of a range, what others have is passed over, whoever has it.
func TestPublishRangePassesOverWhatIsTaken(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	h.joined(epB, "172.19.0.3/16")
	h.Core.Take(model.Publish{Proto: model.UDP, HostPort: 22301}) // seen by the pass only
	three := programReq(epA, ports(binding(17, "", 22300, 22302, 53)))
	h.ok("ProgramExternalConnectivity", three)
	three["EndpointID"] = epB
	h.ok("ProgramExternalConnectivity", three)
	if a, b := h.endpoint(epA).Publishes[0].HostPort, h.endpoint(epB).Publishes[0].HostPort; a != 22300 || b != 22302 {
		t.Errorf("chose %d and %d", a, b)
	}
	h.fails("ProgramExternalConnectivity", programReq(epB, ports(binding(17, "", 22300, 22301, 53))), "all ports are allocated")
}

// A network's own default address, where -p names none.
func TestPublishOnTheNetworksAddress(t *testing.T) {
	ip := netip.MustParseAddr
	for given, want := range map[string]netip.Addr{"127.0.0.1": ip("127.0.0.1"), "119.26.38.75": ip("172.31.0.14")} {
		h := newHarness(t)
		h.network(object{"com.docker.network.bridge.host_binding_ipv4": given})
		h.joined(epA, "172.19.0.2/16")
		h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(80, 80), binding(6, "172.31.0.8", 81, 81, 81))))
		if diff := cmp.Diff([]model.Publish{
			{Proto: model.TCP, HostIP: want, HostPort: 80, Port: 80},
			{Proto: model.TCP, HostIP: ip("172.31.0.8"), HostPort: 81, Port: 81},
		}, h.endpoint(epA).Publishes, compareAddrs); diff != "" {
			t.Errorf("%s: published (-want +got)\n%s", given, diff)
		}
	}
}

// Any host port: in the order of Docker's allocator, behind the last one that
// was given, for each protocol and address by itself, and around.
func TestPublishAnyPort(t *testing.T) {
	h := newHarness(t)
	h.Core.Observed.Sysctls = map[string]string{
		"net/ipv4/ip_local_port_range":     "22320\t22325",
		"net/ipv4/ip_local_reserved_ports": "22321,22323-22324",
	}
	h.network(nil)
	publish := func(proto int, ip string) uint16 {
		t.Helper()
		h.joined(epA, "172.19.0.2/16")
		defer h.ok("DeleteEndpoint", ref(netID, epA))
		h.ok("ProgramExternalConnectivity", programReq(epA, ports(binding(proto, ip, 0, 0, 8080))))
		return h.endpoint(epA).Publishes[0].HostPort
	}
	var got []uint16
	for range 4 {
		got = append(got, publish(6, "127.0.0.1"))
	}
	got = append(got, publish(17, "127.0.0.1"), publish(6, "127.0.0.1"))
	if diff := cmp.Diff([]uint16{22320, 22322, 22325, 22320, 22320, 22322}, got); diff != "" {
		t.Errorf("host ports (-want +got)\n%s", diff)
	}
	// Nothing of the range is left: two ports of one container, one of another's.
	h.joined(epB, "172.19.0.3/16")
	h.fails("ProgramExternalConnectivity", programReq(epB, ports(
		binding(6, "127.0.0.1", 0, 0, 1), binding(6, "127.0.0.1", 0, 0, 2), binding(6, "127.0.0.1", 0, 0, 3), binding(6, "127.0.0.1", 0, 0, 4),
	)), "all ports are allocated")
}

// Docker 28 has two networks of one container publish the same ports where one
// carries its IPv4 and the other its IPv6: they are the same ports on both, and
// what only one of them can do is done there.
func TestPublishOnTwoNetworks(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	six := networkReq("six", nil)
	six["Options"] = object{"com.docker.network.enable_ipv4": false, "com.docker.network.enable_ipv6": true}
	six["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
	h.ok("CreateNetwork", six)
	for _, id := range []string{epA, epB} {
		h.Labels.Add(id, model.Container{ID: "both", Name: "both"})
	}
	h.joined(epA, "172.19.0.2/16")
	asked := ports(tcp(80, 80), binding(6, "172.31.0.14", 81, 81, 81), binding(6, "", 0, 0, 8080))
	h.ok("ProgramExternalConnectivity", programReq(epA, asked))
	h.ok("CreateEndpoint", object{"NetworkID": "six", "EndpointID": epB, "Interface": object{"AddressIPv6": "fd00:9::2/64"}})
	program := programReq(epB, asked)
	program["NetworkID"] = "six"
	h.fails("ProgramExternalConnectivity", program, "publishing ports of endpoint bbbbbbbbbbbb: it is not connected")
	h.ok("Join", ref("six", epB))
	h.ok("ProgramExternalConnectivity", program)

	first, second := h.endpoint(epA).Publishes, h.endpoint(epB).Publishes
	if len(first) != 3 {
		t.Errorf("published %v", first)
	}
	want := slices.DeleteFunc(slices.Clone(first), func(p model.Publish) bool { return p.HostIP.IsValid() })
	if diff := cmp.Diff(want, second, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("on the second network (-want +got)\n%s", diff)
	}
	h.ok("Leave", ref(netID, epA))
	h.fails("ProgramExternalConnectivity", program, "publishing port 81 on 172.31.0.14: the container has no IPv4 address on this network")
}

// TestHostBindingBothFamilies: 0.0.0.0 as a network's host address stands for
// [::], too, under the same port; what has no address of the default's family is
// not published, and that is no error.
func TestHostBindingBothFamilies(t *testing.T) {
	ip := netip.MustParseAddr
	for _, tc := range []struct {
		name, binding string
		v4, v6        bool
		want          []netip.Addr // of each port
	}{
		{"all addresses", "0.0.0.0", true, true, []netip.Addr{ip("0.0.0.0"), ip("::")}},
		{"all addresses, IPv4 alone", "0.0.0.0", true, false, []netip.Addr{ip("0.0.0.0"), ip("::")}}, // by a proxy, where the host has IPv6
		{"all addresses, IPv6 alone", "0.0.0.0", false, true, []netip.Addr{ip("::")}},
		{"one address", "172.31.0.8", true, true, []netip.Addr{ip("172.31.0.8")}},
		{"one address, IPv6 alone", "172.31.0.8", false, true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHarness(t)
			req := networkReq(netID, object{"com.docker.network.bridge.host_binding_ipv4": tc.binding})
			options := req["Options"].(object)
			options["com.docker.network.enable_ipv4"], options["com.docker.network.enable_ipv6"] = tc.v4, tc.v6
			req["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
			h.ok("CreateNetwork", req)
			iface := object{}
			if tc.v6 {
				iface["AddressIPv6"] = "fd00:9::2/64"
			}
			if tc.v4 {
				iface["Address"] = "172.19.0.2/16"
			}
			h.ok("CreateEndpoint", object{"NetworkID": netID, "EndpointID": epA, "Interface": iface})
			h.ok("Join", joinReq(epA))
			var before []model.Publish
			for range 2 { // the same again, as when Docker asks twice
				h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(80, 8080), binding(6, "", 9000, 9005, 8081), tcp(0, 8082))))
				on := make(map[uint16][]netip.Addr)
				got := h.endpoint(epA).Publishes
				for _, p := range got {
					on[p.Port] = append(on[p.Port], p.HostIP)
				}
				for _, port := range []uint16{8080, 8081, 8082} {
					if diff := cmp.Diff(tc.want, on[port], compareAddrs); diff != "" {
						t.Errorf("port %d (-want +got)\n%s", port, diff)
					}
				}
				for _, p := range got {
					for _, o := range got {
						if p.Port == o.Port && p.HostPort != o.HostPort {
							t.Errorf("%v and %v: two host ports", p, o)
						}
					}
				}
				if diff := cmp.Diff(before, got, compareAddrs); before != nil && diff != "" {
					t.Errorf("asked again (-before +after)\n%s", diff)
				}
				before = got
			}
		})
	}
}
