package driver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

// calls are all that a driver can be asked, and one thing that it cannot.
var calls = []string{
	"CreateNetwork", "DeleteNetwork", "CreateEndpoint", "DeleteEndpoint", "EndpointOperInfo", "Join", "Leave",
	"ProgramExternalConnectivity", "RevokeExternalConnectivity",
	"GetCapabilities", "GwAllocCheck", "DiscoverNew", "DiscoverDelete", "AllocateNetwork", "FreeNetwork", "Unheard",
}

// FuzzCalls sends any body to any call, with Docker up or booting, to a driver
// that has a network with one endpoint joined and one created. It is always
// answered in the protocol's form. A refusal changes nothing, but that ports
// which were refused take those before them along. What succeeded succeeds once
// more, and changes nothing more: Docker repeats calls.
func FuzzCalls(f *testing.F) {
	for call, reqs := range seedRequests() {
		for _, req := range reqs {
			body, err := json.Marshal(req)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(call, false, string(body))
			f.Add(call, true, string(body))
		}
	}
	for call := range calls {
		for _, body := range []string{"", "null", "{}", `{"NetworkID":"` + netID + `","EndpointID":"` + epA + `"}`} {
			f.Add(byte(call), false, body)
		}
	}
	f.Fuzz(func(t *testing.T, call byte, boot bool, body string) {
		h := newHarness(t)
		h.network(nil)
		h.Labels.Add(epA, model.Container{ID: "1", Name: "app", Labels: map[string]string{"eip.nic": "eth1"}})
		h.joined(epA, "172.19.0.2/16")
		h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(8090, 8080))))
		h.ok("CreateEndpoint", endpointReq(netID, epB, "172.19.0.3/16", nil))
		h.Labels.Set(!boot, boot)
		name := calls[int(call)%len(calls)]
		before, passes := h.held(), h.Core.Passes()

		status, answer := h.raw("/NetworkDriver."+name, body)
		var said struct{ Err string }
		if err := json.Unmarshal([]byte(answer), &said); err != nil || (status == http.StatusOK) != (said.Err == "") {
			t.Fatalf("%s: %d %s (%v)", name, status, answer, err)
		}
		if strings.Contains(h.log.String(), "panic in a call") {
			t.Fatal(h.log.String())
		}
		after := h.held()
		switch status {
		case http.StatusOK:
			if status, answer := h.raw("/NetworkDriver."+name, body); status != http.StatusOK {
				t.Errorf("%s succeeded, and then did not: %s", name, answer)
			}
			if diff := cmp.Diff(after, h.held(), compareHeld...); diff != "" {
				t.Errorf("%s, repeated (-once +twice)\n%s", name, diff)
			}
		case http.StatusBadRequest, http.StatusNotFound:
			if h.Core.Passes() != passes {
				t.Errorf("%s was refused with %d and had a pass run", name, status)
			}
			fallthrough
		default:
			if name == "ProgramExternalConnectivity" && status == http.StatusInternalServerError {
				before, after = before.withoutPorts(), after.withoutPorts()
			}
			if diff := cmp.Diff(before, after, compareHeld...); diff != "" {
				t.Errorf("%s failed (%s), with effects (-before +after)\n%s", name, said.Err, diff)
			}
		}
	})
}

// held is all that a driver keeps of what Docker told it.
type held struct {
	Networks  []model.Network
	Endpoints []model.Endpoint
	Veths     []driver.Veth
	Bridges   []string
}

var compareHeld = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(model.Network{}.Subnet4, model.Network{}.Gateway4),
}

func (h *harness) held() held {
	return held{h.Store.Networks(), h.Store.Endpoints(), h.Links.Veths(), h.Core.Bridges()}
}

func (s held) withoutPorts() held {
	for i := range s.Endpoints {
		s.Endpoints[i].Publishes = nil
	}
	return s
}

// seedRequests are requests as engines send them, by the call's place in calls.
func seedRequests() map[byte][]object {
	six := networkReq("x0z9k2l3m4n5o6p7q8r9s0t1u", object{
		"eip.nic": "eth1", "eip.allow": "eth1,eth0", "com.docker.network.bridge.name": "eip_six", "com.docker.network.driver.mtu": "1400",
		"com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
	})
	six["IPv4Data"] = []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}}
	six["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
	six["Options"].(object)["com.docker.network.enable_ipv6"] = true
	inner := networkReq("inner", nil)
	inner["IPv4Data"] = []object{{"Pool": "10.8.0.0/24", "Gateway": "10.8.0.1/24"}}
	inner["Options"].(object)["com.docker.network.internal"] = true
	withMAC := endpointReq(netID, "c", "172.19.0.4/16", object{"eip.nic": "eth1", "com.docker.network.portmap": ports(tcp(80, 80))})
	withMAC["Interface"].(object)["MacAddress"] = "02:aa:bb:cc:dd:ee"
	return map[byte][]object{
		0: {networkReq(netID, nil), six, inner, networkReq("other", object{"eip.nic": "eth9"})},
		1: {{"NetworkID": netID}, {"NetworkID": "nobody"}},
		2: {
			endpointReq(netID, epA, "172.19.0.2/16", nil), endpointReq(netID, epB, "172.19.0.2/16", nil), withMAC,
			endpointReq(netID, "c", "172.19.0.2/16", object{"eip.ip": "172.31.0.8", "eip.fallback": "hold"}), endpointReq("nobody", "c", "172.19.0.4/16", nil),
		},
		5: {joinReq(epA), joinReq(epB), joinReq("nobody")},
		7: {
			programReq(epA, ports(tcp(8090, 8080))), programReq(epA, nil), programReq(epB, ports(tcp(80, 80))), programReq("nobody", nil),
			programReq(epA, ports(binding(6, "", 0, 0, 80), binding(17, "127.0.0.1", 5300, 5310, 53), binding(132, "0.0.0.0", 9, 9, 9))),
			programReq(epA, ports(binding(6, "119.26.38.75", 80, 80, 80), tcp(81, 80), tcp(81, 81))), programReq(epA, ports(binding(6, "192.0.2.1", 80, 80, 80))),
		},
		10: {networkReq("x", nil)},
	}
}
