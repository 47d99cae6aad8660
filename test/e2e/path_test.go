package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/test/lab"
)

// TestPath is the article's scenario and everything that makes it true, for
// every rp_filter and both shapes of the cloud.
func TestPath(t *testing.T) {
	for _, tc := range []lab.Config{
		{RPFilter: "2", Shape: lab.OneSubnet},
		{RPFilter: "1", Shape: lab.ThreeSubnets},
		{RPFilter: "0", Shape: lab.OneSubnet},
		{RPFilter: "1", Shape: lab.OneSubnet},
		{RPFilter: "2", Shape: lab.ThreeSubnets},
	} {
		t.Run(fmt.Sprintf("%v,rp_filter=%s", tc.Shape, tc.RPFilter), func(t *testing.T) {
			r := up(t, tc)
			r.createNetwork()
			t.Run("nothing pinned", r.nothingPinned)
			t.Run("article", r.article)
			t.Run("same port on two NICs", r.samePort)
			t.Run("published on another NIC", r.publishedElsewhere)
			t.Run("unpinned", r.unpinned)
			t.Run("protocols", r.protocols)
			t.Run("selectors", r.selectors)
		})
	}
}

// An unpinned container leaves as the host does, also while no NIC is managed.
func (r *rig) nothingPinned(t *testing.T) {
	r.run(t, "only")
	r.leaves(t, "only", r.EIP("eth0").String())
	s, err := r.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.NICs {
		if n.Managed {
			t.Errorf("%s is managed, and nobody asked", n.Name)
		}
	}
}

// The article's two containers, with a label in place of hand-made iptables.
func (r *rig) article(t *testing.T) {
	r.resetSniffers()
	r.run(t, "app0", "--ip", "172.19.0.100", "--label", "eip.nic=eth0", "-p", r.Addr("eth0").String()+":8090:8080")
	r.run(t, "app1", "--ip", "172.19.0.101", "--label", "eip.nic=eth1", "-p", r.Addr("eth1").String()+":8090:8080")
	r.answers(r.url("eth0", 8090), r.EIP("eth0").String())
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.clean()

	for _, e := range r.well().Endpoints {
		if e.Container == "app1" && (e.NIC != "eth1" || e.Public != r.EIP("eth1") || len(e.Ports) != 1) {
			t.Errorf("status of app1: %+v", e)
		}
	}
}

// No host address given: each is published on its own NIC, so the same port goes twice.
func (r *rig) samePort(t *testing.T) {
	r.resetSniffers()
	r.run(t, "same0", "--label", "eip.nic=eth0", "-p", "8090:8080", "-p", "8090:8080/udp")
	r.run(t, "same1", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8090:8080/udp")
	for _, nic := range []string{"eth0", "eth1"} {
		r.answers(r.url(nic, 8090), r.EIP(nic).String())
		got, err := r.udpFromSite(fmt.Sprintf("%v:8090", r.EIP(nic)))
		if err != nil {
			t.Errorf("UDP to %s: %v", nic, err)
		} else if !strings.HasPrefix(got, lab.SiteAddr.String()+":") {
			t.Errorf("the container saw the client as %q, want the site's own address", got)
		}
	}
	r.clean()
}

func (r *rig) publishedElsewhere(t *testing.T) {
	r.resetSniffers()
	r.run(t, "two", "--label", "eip.nic=eth1", "-p", r.Addr("eth0").String()+":8091:8080", "-p", r.Addr("eth1").String()+":8092:8080")
	r.answers(fmt.Sprintf("http://%v:8091/hello", r.EIP("eth0")), "hello")
	r.onlyBy("eth0", lab.ProtoTCP, lab.SiteAddr)
	r.resetSniffers()
	r.answers(r.url("eth1", 8092), r.EIP("eth1").String())
	r.onlyBy("eth1", lab.ProtoTCP, lab.SiteAddr)
	r.clean()
}

func (r *rig) unpinned(t *testing.T) {
	r.run(t, "free", "-p", "8093:8080")
	for _, nic := range []string{"eth0", "eth1", "eth2"} {
		r.resetSniffers()
		r.answers(fmt.Sprintf("http://%v:8093/hello", r.EIP(nic)), "hello")
		r.onlyBy(nic, lab.ProtoTCP, lab.SiteAddr)
		r.clean()
	}
	// Its own traffic follows the host: by the primary, masqueraded.
	r.resetSniffers()
	r.answers(r.url("eth0", 8093), r.EIP("eth0").String())
	r.clean()
}

func (r *rig) protocols(t *testing.T) {
	r.run(t, "proto", "--label", "eip.nic=eth1")
	r.resetSniffers()
	if out, err := r.exec("proto", "get", fmt.Sprintf("http://%v/ip", lab.SiteAddr)); err != nil || out != r.EIP("eth1").String() {
		t.Errorf("TCP: %q, %v", out, err)
	}
	r.onlyBy("eth1", lab.ProtoTCP, lab.SiteAddr)
	if out, err := r.exec("proto", "udp", fmt.Sprintf("%v:7", lab.SiteAddr), "hello"); err != nil || !strings.HasPrefix(out, r.EIP("eth1").String()+":") {
		t.Errorf("UDP: %q, %v", out, err)
	}
	r.onlyBy("eth1", lab.ProtoUDP, lab.SiteAddr)
	if out, err := r.exec("proto", "ping", lab.SiteAddr.String()); err != nil {
		t.Errorf("ICMP: %q, %v", out, err)
	}
	r.onlyBy("eth1", lab.ProtoICMP, lab.SiteAddr)
	r.clean()
}

// Every way to say the NIC, and which one wins.
func (r *rig) selectors(t *testing.T) {
	eth2 := r.EIP("eth2").String()
	for name, args := range map[string][]string{
		"by-ip":      {"--label", "eip.ip=" + r.Addr("eth2").String()},
		"by-eip":     {"--label", "eip.public=" + eth2},
		"by-mac":     {"--label", "eip.mac=" + r.NIC("eth2").MAC.String()},
		"option-won": {"--label", "eip.nic=eth1", "--network", "name=" + network + ",driver-opt=eip.nic=eth2"},
	} {
		t.Run(name, func(t *testing.T) {
			all := []string{"run", "--rm"}
			if name != "option-won" {
				all = append(all, "--network", network)
			}
			all = append(append(all, args...), lab.Image, "get", fmt.Sprintf("http://%v/ip", lab.SiteAddr))
			if got := r.docker(all...); got != eth2 {
				t.Errorf("left as %s, want %s", got, eth2)
			}
		})
	}
	r.clean()
}

// TestNetworkOption: a network's own option pins what says nothing else.
func TestNetworkOption(t *testing.T) {
	r := up(t, lab.Config{})
	r.createNetwork("-o", "eip.nic=eth2")
	get := []string{lab.Image, "get", fmt.Sprintf("http://%v/ip", lab.SiteAddr)}
	if got := r.docker(append([]string{"run", "--rm", "--network", network}, get...)...); got != r.EIP("eth2").String() {
		t.Errorf("by the network's option: left as %s, want %v", got, r.EIP("eth2"))
	}
	if got := r.docker(append([]string{"run", "--rm", "--network", network, "--label", "eip.nic=eth1"}, get...)...); got != r.EIP("eth1").String() {
		t.Errorf("label over network option: left as %s, want %v", got, r.EIP("eth1"))
	}
	r.clean()
}
