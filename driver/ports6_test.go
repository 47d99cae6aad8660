package driver_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

// TestPublishOverIPv6 is about a container that has IPv4 alone: a proxy can take
// to it what comes to the host's IPv6 addresses.
func TestPublishOverIPv6(t *testing.T) {
	for _, tc := range []struct {
		name        string
		host, proto string
		off         bool   // the host has no IPv6
		want        string // the error; none: it is published there
	}{
		{name: "all addresses", host: "::"},
		{name: "loopback", host: "::1"},
		{name: "UDP", host: "::1", proto: "udp"},
		{name: "a NIC's", host: "2001:db8::14"},
		{name: "nobody's", host: "2001:db8::99", want: "host address 2001:db8::99 is neither on this host nor a known EIP (--eip); its addresses: 172.17.0.1, 172.31.0.8, 172.31.0.14, 2001:db8::14"},
		{name: "SCTP", host: "::", proto: "sctp", want: "publishing port 8080 on ::: the container has no IPv6 address on this network"},
		{name: "a host without IPv6", host: "::1", off: true, want: "publishing port 8080 on ::1: the container has no IPv6 address on this network"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHarness(t)
			h.Core.Observed.IPv6 = !tc.off
			h.Core.Observed.Locals = append(h.Core.Observed.Locals, netip.IPv6Loopback(), netip.MustParseAddr("2001:db8::14"))
			h.network(nil)
			h.joined(epA, "172.19.0.2/16")
			proto := map[string]model.Proto{"": model.TCP, "udp": model.UDP, "sctp": model.SCTP}[tc.proto]
			req := programReq(epA, ports(binding(int(proto), tc.host, 80, 80, 8080)))
			if tc.want != "" {
				h.fails("ProgramExternalConnectivity", req, tc.want)
				return
			}
			h.ok("ProgramExternalConnectivity", req)
			want := []model.Publish{{Proto: proto, HostIP: netip.MustParseAddr(tc.host), HostPort: 80, Port: 8080}}
			if diff := cmp.Diff(want, h.endpoint(epA).Publishes, compareAddrs); diff != "" {
				t.Errorf("published (-want +got)\n%s", diff)
			}
		})
	}
}

// TestPublishOverIPv6BesideInternal: an IPv6 address on an internal network, where
// nothing is published, is not one that has the port.
func TestPublishOverIPv6BesideInternal(t *testing.T) {
	for _, internal := range []bool{true, false} {
		h := newHarness(t)
		h.Core.Observed.IPv6 = true
		h.Core.Observed.Locals = append(h.Core.Observed.Locals, netip.IPv6Loopback())
		h.network(nil)
		six := networkReq("six", nil)
		options := six["Options"].(object)
		options["com.docker.network.enable_ipv4"], options["com.docker.network.enable_ipv6"], options["com.docker.network.internal"] = false, true, internal
		six["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
		h.ok("CreateNetwork", six)
		for _, id := range []string{epA, epB} {
			h.Labels.Add(id, model.Container{ID: "both", Name: "both"})
		}
		h.ok("CreateEndpoint", object{"NetworkID": "six", "EndpointID": epB, "Interface": object{"AddressIPv6": "fd00:9::2/64"}})
		h.ok("Join", ref("six", epB))
		h.joined(epA, "172.19.0.2/16")
		h.ok("ProgramExternalConnectivity", programReq(epA, ports(binding(int(model.TCP), "::1", 80, 80, 8080))))
		if got := len(h.endpoint(epA).Publishes); (got == 1) != internal {
			t.Errorf("internal %v: %d ports", internal, got)
		}
	}
}

// TestPublishSCTPOnLoopback6: there is no proxy for SCTP.
func TestPublishSCTPOnLoopback6(t *testing.T) {
	h := newHarness(t)
	h.Core.Observed.IPv6 = true
	req := networkReq(netID, nil)
	req["Options"].(object)["com.docker.network.enable_ipv6"] = true
	req["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
	h.ok("CreateNetwork", req)
	h.ok("CreateEndpoint", object{"NetworkID": netID, "EndpointID": epA, "Interface": object{"Address": "172.19.0.2/16", "AddressIPv6": "fd00:9::2/64"}})
	h.ok("Join", joinReq(epA))
	h.fails("ProgramExternalConnectivity", programReq(epA, ports(binding(int(model.SCTP), "::1", 80, 80, 80))),
		"host address ::1: there is no proxy for SCTP; use 127.0.0.1 or the address of a NIC: eth0 (172.31.0.8, primary), eth1 (172.31.0.14)")
}
