package host

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// TestNICInVRF: a NIC knows the VRF that it is in. (The links are made up, as not
// every kernel has VRFs.)
func TestNICInVRF(t *testing.T) {
	master := func(index int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: "eth1", Index: 3, MasterIndex: index, EncapType: "ether"}
	}
	for _, test := range []struct {
		name string
		link netlink.Link
		want string
	}{
		{"in none", &netlink.Device{LinkAttrs: master(0)}, ""},
		{"in a VRF", &netlink.Device{LinkAttrs: master(9)}, "blue"},
		{"in a team", &netlink.Device{LinkAttrs: master(8)}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := &Host{}
			links := newTables([]netlink.Link{
				test.link,
				&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "team0", Index: 8}, LinkType: "team"},
				&netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "blue", Index: 9}, Table: 10},
			})
			if !h.isNIC(links, test.link, []string{"eth1"}) {
				t.Error("it is no NIC")
			}
			if got := h.nic(links, test.link, 0).VRF; got != test.want {
				t.Errorf("it is in %q, want %q", got, test.want)
			}
		})
	}
}
