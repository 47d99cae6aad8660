package plan_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestBridgePorts: who may bear which address on driver, strict and other stock
// networks.
func TestBridgePorts(t *testing.T) {
	in := snapshot()
	in.Networks = append(in.Networks,
		model.Network{ID: "stock", Stock: true, Bridge: "br-stock", Subnet4: prefix("172.20.0.0/16"), Gateway4: addr("172.20.0.1")},
		model.Network{ID: "strict", Stock: true, Bridge: "br-strict", Subnet4: prefix("172.21.0.0/16"), Gateway4: addr("172.21.0.1"), Options: label("eip.strict=true")},
		model.Network{ID: "other", Stock: true, Bridge: "br-other", Subnet4: prefix("172.22.0.0/16"), Gateway4: addr("172.22.0.1")})
	in.Host.Peers = make(map[string]string)
	add := func(n int, network, a string, labels ...string) {
		e := endpoint(n, label(labels...))
		e.NetworkID, e.Addr4, e.MAC = network, addr(a), "02:42:ac:00:00:"+a[len(a)-2:]
		e.ID += network
		e.OptionsKnown = true
		if network == "net" {
			e.Veth = "eipv" + e.MAC[15:]
		} else {
			in.Host.Peers["veth"+e.MAC[15:]] = e.MAC
		}
		in.Endpoints = append(in.Endpoints, e)
	}
	add(1, "net", "172.19.0.11", "eip.nic=eth1")
	add(1, "stock", "172.20.0.21", "eip.nic=eth1") // the same container
	add(2, "net", "172.19.0.12")
	add(2, "stock", "172.20.0.24")                 // unpinned: there it leaves as ever
	add(3, "stock", "172.20.0.22", "eip.nic=eth7") // held
	add(4, "stock", "172.20.0.23")
	add(5, "strict", "172.21.0.31", "eip.nic=eth0")
	add(6, "strict", "172.21.0.32")
	add(7, "other", "172.22.0.41") // nobody asked
	in.Host.Peers["veth99"] = "02:42:ac:00:00:99"

	d, _ := plan.Compute(in)
	addrs := func(list ...string) []netip.Addr {
		var out []netip.Addr
		for _, a := range list {
			out = append(out, addr(a))
		}
		return out
	}
	want := []plan.BridgePort{
		{Bridge: "br-stock", Name: "br-stock", Addrs: addrs("172.20.0.1")},
		{Bridge: "br-strict", Name: "br-strict", Addrs: addrs("172.21.0.1")},
		{Bridge: "eip_bridge", Name: "eipv11", MAC: "02:42:ac:00:00:11", Addrs: addrs("172.19.0.11", "172.20.0.21"), Only: true},
		{Bridge: "eip_bridge", Name: "eipv12", MAC: "02:42:ac:00:00:12", Addrs: addrs("172.19.0.12"), Only: true},
		{Bridge: "br-stock", Name: "veth21", MAC: "02:42:ac:00:00:21", Addrs: addrs("172.19.0.11", "172.20.0.21"), Bound: true},
		{Bridge: "br-stock", Name: "veth22", MAC: "02:42:ac:00:00:22", Addrs: addrs("172.20.0.22"), Bound: true},
		{Name: "veth23", MAC: "02:42:ac:00:00:23"},
		{Name: "veth24", MAC: "02:42:ac:00:00:24"},
		{Bridge: "br-strict", Name: "veth31", MAC: "02:42:ac:00:00:31", Addrs: addrs("172.21.0.31"), Bound: true},
		{Bridge: "br-strict", Name: "veth32", MAC: "02:42:ac:00:00:32", Addrs: addrs("172.21.0.32")}, // whoever gets it next
		{Name: "veth41", MAC: "02:42:ac:00:00:41"},
		{Name: "veth99", MAC: "02:42:ac:00:00:99"},
	}
	if diff := cmp.Diff(want, d.Bridges, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}
