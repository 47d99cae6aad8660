package host

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/netnstest"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestRemoveAll: everything that is ours is listed and removed, and nothing else.
func TestRemoveAll(t *testing.T) {
	const rp, fwd = "net/ipv4/conf/eth0/rp_filter", "net/ipv4/ip_forward"
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far0", "link set eth0 group 7", "link add br-other type bridge", "link add eipv-mine type bridge")
		setSysctl(t, rp, "1")
		setSysctl(t, fwd, "0")
		before := ip(t, "link")
		h, _ := open(t, Options{})
		list := func(want ...string) {
			t.Helper()
			got, err := h.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
		}
		list()
		links := plan.Links{Null: true, Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc"}}, Grouped: []string{"eth0"}}
		apply(t, h, links, []plan.Sysctl{{Path: rp, From: []string{"1"}, Value: "2"}, {Path: fwd, From: []string{"0"}, Value: "1"}}, true, true)
		if err := h.AddVeth(t.Context(), Veth{Host: "eipvaaaaaaaaaaa", Peer: "eipcaaaaaaaaaaa", Bridge: "eip_bridge", Alias: "eipnet endpoint a"}); err != nil {
			t.Fatal(err)
		}
		setSysctl(t, fwd, "0") // somebody's own choice by now
		list("group 45 of eth0", "link eipnull0", "link eip_bridge", "link eipcaaaaaaaaaaa", "link eipvaaaaaaaaaaa", "sysctl "+rp+"=2 (before: 1)")
		for range 2 {
			if err := h.RemoveAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			list()
		}
		if diff := cmp.Diff(before, ip(t, "link")); diff != "" {
			t.Errorf("links (-before +after):\n%s", diff)
		}
		if a, b := sysctlValue(t, rp), sysctlValue(t, fwd); a != "1" || b != "0" {
			t.Errorf("rp_filter %s, ip_forward %s", a, b)
		}
	})
}

// TestAlike: who has lost the state file is told which switches may be ours.
func TestAlike(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far0", "link add eth1 type veth peer name far1", "link set eth0 group 45")
		setSysctl(t, "net/ipv4/ip_forward", "1")
		setSysctl(t, "net/ipv6/conf/all/forwarding", "0")
		for _, nic := range []string{"eth0", "eth1"} {
			setSysctl(t, conf4(nic, "rp_filter"), "2")
			setSysctl(t, conf4(nic, "arp_ignore"), "1")
			setSysctl(t, conf4(nic, "arp_announce"), "0")
		}
		h, _ := open(t, Options{})
		got, err := h.Alike(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{conf4("eth0", "arp_ignore") + "=1", conf4("eth0", "rp_filter") + "=2", "net/ipv4/ip_forward=1"}, got); diff != "" {
			t.Errorf("alike (-want +got):\n%s", diff)
		}
	})
}

// A link in our group of which nothing is remembered is somebody else's, as far
// as a pass knows; who cleans up wants it out of there.
func TestGroupThatNobodyRemembers(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far0", "link set eth0 group 45")
		h, _ := open(t, Options{})
		apply(t, h, plan.Links{}, nil, true, false)
		if g := link(t, h, "eth0").Attrs().Group; g != 45 {
			t.Errorf("after a pass eth0 is in group %d, want 45", g)
		}
		if err := h.RemoveAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g := link(t, h, "eth0").Attrs().Group; g != 0 {
			t.Errorf("after the clean-up eth0 is in group %d, want 0", g)
		}
	})
}
