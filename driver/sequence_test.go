package driver_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

// sequences are what engines were seen to send, each step as CALL:endpoint.
var sequences = []struct {
	name  string
	steps string
}{
	{"run and stop", "CE:a Join:a PEC:a Info:a Info:a REC:a Leave:a DE:a"},
	{"29 after live restore sends no revoke", "CE:a Join:a PEC:a Info:a Leave:a DE:a"},
	{"only delete", "CE:a Join:a PEC:a DE:a"},
	{"every call twice", "CE:a CE:a Join:a Join:a PEC:a PEC:a Info:a REC:a REC:a Leave:a Leave:a DE:a DE:a"},
	{"restart: new id, same address", "CE:a Join:a PEC:a Info:a REC:a Leave:a DE:a CE:b Join:b PEC:b Info:b REC:b Leave:b DE:b"},
	{"dockerd killed: new id, same address, the old one never deleted", "CE:a Join:a PEC:a CE:b Join:b PEC:b Info:b REC:b Leave:b DE:b"},
	{"dockerd killed: the old one deleted late", "CE:a Join:a PEC:a CE:b Join:b DE:a PEC:b Info:b Leave:b DE:b"},
	{"another network becomes the gateway and stops being it", "CE:a Join:a PEC:a Info:a Info:a REC:a PEC:a Info:a REC:a Leave:a DE:a"},
	{"never the gateway", "CE:a Join:a Info:a Leave:a DE:a"},
	{"publishing failed, up to 28", "CE:a Join:a PECfail:a Leave:a DE:a"},
	{"publishing failed, 29", "CE:a Join:a PECfail:a Leave:a Leave:a DE:a"},
	{"join failed, up to 28", "CE:a JoinFail:a DE:a"},
	{"join failed, 29", "CE:a JoinFail:a Leave:a DE:a"},
	{"container failed to start", "CE:a Join:a PEC:a REC:a Leave:a DE:a"},
	{"stale sandbox, up to 27", "CE:a Join:a PEC:a PECempty:a REC:a Leave:a DE:a"},
	{"stale sandbox of an unknown endpoint", "PECempty:a REC:a Leave:a DE:a Info:a"},
	{"teardown of a container on two networks, up to 28", "CE:a Join:a PEC:a REC:a PEC:a REC:a Leave:a DE:a"},
}

func TestSequences(t *testing.T) {
	ids := map[string]string{"a": epA, "b": epB}
	for _, network := range []string{netID, "x0z9k2l3m4n5o6p7q8r9s0t1u"} { // swarm's ids have 25 characters
		for _, seq := range sequences {
			t.Run(seq.name, func(t *testing.T) {
				h := newHarness(t)
				h.ok("CreateNetwork", networkReq(network, nil))
				for step := range strings.FieldsSeq(seq.steps) {
					call, letter, _ := strings.Cut(step, ":")
					play(h, call, network, ids[letter])
				}
				if left := h.Store.Endpoints(); len(left) > 0 {
					t.Errorf("endpoints left: %+v", left)
				}
				if left := h.Links.Veths(); len(left) > 0 {
					t.Errorf("veths left: %+v", left)
				}
				if strings.Contains(seq.steps, "CE") && !slices.Contains(h.Links.Flushed(), netip.MustParseAddr("172.19.0.2")) {
					t.Errorf("connections forgotten: %v", h.Links.Flushed())
				}
				h.ok("DeleteNetwork", object{"NetworkID": network})
				h.ok("DeleteNetwork", object{"NetworkID": network})
				if left := h.Core.Bridges(); len(left) > 0 {
					t.Errorf("bridges left: %v", left)
				}
				if strings.Contains(h.log.String(), "panic") {
					t.Error(h.log.String())
				}
			})
		}
	}
}

func play(h *harness, call, network, id string) {
	h.t.Helper()
	switch call {
	case "JoinFail":
		h.Core.Fail(errors.New("kernel says no"))
		if _, errText := h.call(request("Join", network, id)); errText == "" {
			h.t.Error("Join succeeded")
		}
		if e := h.endpoint(id); e.Phase != model.Created || e.Veth != "" {
			h.t.Errorf("after a failed join: %+v", e)
		}
	case "PECfail":
		h.Core.Take(model.Publish{Proto: model.TCP, HostPort: 8090})
		if _, errText := h.call(request("PEC", network, id)); errText != "Bind for 172.31.0.14:8090 failed: port is already allocated" {
			h.t.Errorf("ProgramExternalConnectivity: %q", errText)
		}
		if e := h.endpoint(id); len(e.Publishes) > 0 {
			h.t.Errorf("after a failed publish: %+v", e)
		}
	case "EMPTY":
		h.emptyBodies()
	case "STRANGER":
		h.strangers()
	default:
		answer := h.ok(request(call, network, id))
		e, there := h.Store.Endpoint(id)
		switch {
		case call == "Info" && answer != `{"Value":{}}`:
			h.t.Errorf("EndpointOperInfo: %s", answer)
		case call == "Leave" && there && (e.Phase != model.Left || len(e.Publishes) > 0):
			h.t.Errorf("after Leave: %+v", e)
		}
	}
}

func TestLeaveKeepsTheVethThatDockerIsAboutToMove(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	want := []driver.Veth{{
		Host: "eipvaaaaaaaaaaa", Peer: "eipcaaaaaaaaaaa", Bridge: "eip-0a1b2c3d4e5",
		MAC: "02:42:ac:13:00:02", Alias: "eipnet endpoint " + epA,
	}}
	if diff := cmp.Diff(want, h.Links.Veths()); diff != "" {
		t.Errorf("veths (-want +got)\n%s", diff)
	}
	h.ok("Leave", ref(netID, epA))
	if diff := cmp.Diff(want, h.Links.Veths()); diff != "" {
		t.Errorf("veths after Leave (-want +got)\n%s", diff)
	}
}

// A container's whole life, fifty at once, with ports that are chosen for
// them.
func TestConcurrentContainers(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			id := fmt.Sprintf("%02x%s", i, epA[2:])
			h.Labels.Add(id, model.Container{ID: strconv.Itoa(i), Name: fmt.Sprint("app", i), Labels: map[string]string{"eip.nic": "eth1"}})
			h.ok("CreateEndpoint", endpointReq(netID, id, fmt.Sprintf("172.19.0.%d/16", 10+i), nil))
			h.ok("Join", joinReq(id))
			h.ok("ProgramExternalConnectivity", programReq(id, ports(binding(6, "", 42100, 42199, 8080), binding(17, "", 0, 0, 53), tcp(20000+i, 80))))
			e := h.endpoint(id)
			if len(e.Publishes) != 3 || e.Container.Labels["eip.nic"] != "eth1" {
				t.Errorf("endpoint %d: %+v", i, e)
			}
			h.ok("EndpointOperInfo", ref(netID, id))
			if i%2 == 0 {
				h.ok("RevokeExternalConnectivity", ref(netID, id))
				h.ok("Leave", ref(netID, id))
			}
			h.ok("DeleteEndpoint", ref(netID, id))
		})
	}
	group.Wait()
	if left := h.Store.Endpoints(); len(left) > 0 {
		t.Errorf("%d endpoints left", len(left))
	}
	if left := h.Links.Veths(); len(left) > 0 {
		t.Errorf("%d veths left", len(left))
	}
}

// The same endpoint from many goroutines: the calls must not overlap.
func TestConcurrentCallsForOneEndpoint(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() { h.call("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil)) })
		group.Go(func() { h.call("Join", joinReq(epA)) })
		group.Go(func() { h.call("ProgramExternalConnectivity", programReq(epA, ports(tcp(8090, 8080)))) })
		group.Go(func() { h.call("DeleteEndpoint", ref(netID, epA)) })
	}
	group.Wait()
	h.ok("DeleteEndpoint", ref(netID, epA))
	if left := h.Links.Veths(); len(left) > 0 {
		t.Errorf("veths left: %v", left)
	}
}

func TestDeleteNetworkRemovesForgottenEndpoints(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	h.joined(epB, "172.19.0.3/16")
	h.ok("DeleteNetwork", object{"NetworkID": netID})
	if e, v := h.Store.Endpoints(), h.Links.Veths(); len(e)+len(v) > 0 {
		t.Errorf("left: %v, %v", e, v)
	}
}

func TestTeardownErrorsAreNotDockersBusiness(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	h.Links.Fail(errors.New("device or resource busy"))
	h.ok("DeleteEndpoint", ref(netID, epA))
	if e := h.endpoint(epA); e.Phase != model.Left {
		t.Errorf("an endpoint whose veth stays has to be a tombstone: %+v", e)
	}
	if !strings.Contains(h.log.String(), "device or resource busy") {
		t.Error("the reason is not in the log")
	}
	h.fails("CreateEndpoint", endpointReq(netID, epB, "172.19.0.2/16", nil),
		"removing endpoint aaaaaaaaaaaa, which had the same address: deleting veth eipvaaaaaaaaaaa: device or resource busy")

	h.Links.Fail(nil)
	h.Core.Fail(errors.New("kernel says no"))
	h.ok("DeleteEndpoint", ref(netID, epA))
	if left := h.Store.Endpoints(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
