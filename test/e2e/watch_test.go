package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/test/lab"
)

// siteIP is the URL at which the site tells the address that it sees.
var siteIP = fmt.Sprintf("http://%v/ip", lab.SiteAddr)

// TestWatch: labels on stock networks. Docker keeps bridge, ports and names;
// eipnet adds pin, route, reply path and guard.
func TestWatch(t *testing.T) {
	for _, tc := range []lab.Config{
		{RPFilter: "2", Shape: lab.OneSubnet},
		{RPFilter: "1", Shape: lab.ThreeSubnets},
		{RPFilter: "2", Shape: lab.OneSubnet, DockerdArgs: []string{"--userland-proxy=false"}},
	} {
		t.Run(fmt.Sprintf("%v,rp_filter=%s,%s", tc.Shape, tc.RPFilter, strings.Join(tc.DockerdArgs, "")), func(t *testing.T) {
			r := up(t, tc)
			r.docker("network", "create", "--subnet", "172.20.0.0/16", "stock")
			r.docker("network", "create", "--subnet", "172.21.0.0/16", "--label", "eip.nic=eth2", "strict")
			t.Run("label", r.watchLabel)
			t.Run("neighbour", r.watchNeighbour)
			t.Run("network label", r.watchStrict)
			t.Run("default bridge", r.watchDefault)
			t.Run("trust", r.watchTrust)
			t.Run("macvlan", r.watchBeside)
		})
	}
}

// start runs a container on any network and removes it with the (sub)test.
func (r *rig) start(t *testing.T, name string, args ...string) {
	t.Helper()
	r.docker(append(append([]string{"run", "-d", "--name", name}, args...), lab.Image)...)
	t.Cleanup(func() {
		if _, err := r.Docker(context.Background(), "rm", "-f", name); err != nil {
			t.Error(err)
		}
	})
}

// leaves runs the client in a container and checks the address that the site saw.
func (r *rig) leaves(t *testing.T, name, want string) {
	t.Helper()
	r.eventually(name+" to leave as "+want, func() error { return r.left(name, siteIP, want) })
}

// left asks the site at the URL as whom a container comes.
func (r *rig) left(name, url, want string) error {
	got, err := r.exec(name, "get", url)
	if err == nil && got != want {
		err = fmt.Errorf("it left as %s", got)
	}
	return err
}

// held checks that a container reaches nothing outside.
func (r *rig) held(t *testing.T, name string) {
	t.Helper()
	if got, err := r.exec(name, "get", siteIP); err == nil {
		t.Errorf("%s is held, and yet left as %s", name, got)
	}
}

// problem waits until status names a problem of the subject with these words.
func (r *rig) problem(subject string, words ...string) {
	r.t.Helper()
	r.eventually("a problem of "+subject, func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		for _, p := range s.Problems {
			ok := p.Subject == subject
			for _, w := range words {
				ok = ok && strings.Contains(p.String(), w)
			}
			if ok {
				return nil
			}
		}
		return fmt.Errorf("problems: %v", s.Problems)
	})
}

func (r *rig) watchLabel(t *testing.T) {
	r.start(t, "web1", "--network", "stock", "--label", "eip.nic=eth1", "-p", r.Addr("eth1").String()+":8101:8080", "-p", "8102:8080")
	r.leaves(t, "web1", r.EIP("eth1").String())
	r.resetSniffers()
	r.answers(r.url("eth1", 8101), r.EIP("eth1").String())
	// Published by Docker on all addresses: answered through the NIC that it came in on.
	for _, nic := range []string{"eth0", "eth1", "eth2"} {
		r.resetSniffers()
		r.answers(fmt.Sprintf("http://%v:8102/hello", r.EIP(nic)), "hello")
		r.onlyBy(nic, lab.ProtoTCP, lab.SiteAddr)
	}
	r.clean()
	if ports := r.docker("ps", "--filter", "name=web1", "--format", "{{.Ports}}"); !strings.Contains(ports, "8102->8080") {
		t.Errorf("docker ps shows %q", ports)
	}
	for _, proto := range [][]string{{"udp", lab.SiteAddr.String() + ":7", "hi"}, {"ping", lab.SiteAddr.String()}} {
		if out, err := r.exec("web1", proto...); err != nil {
			t.Errorf("%v: %q, %v", proto, out, err)
		}
	}
	r.clean()
}

// An unlabelled neighbour goes on as without eipnet: by the primary, masqueraded by Docker.
func (r *rig) watchNeighbour(t *testing.T) {
	r.start(t, "pinned", "--network", "stock", "--label", "eip.nic=eth1")
	r.start(t, "plain", "--network", "stock", "-p", r.Addr("eth0").String()+":8103:8080")
	r.leaves(t, "pinned", r.EIP("eth1").String())
	r.leaves(t, "plain", r.EIP("eth0").String())
	r.answers(fmt.Sprintf("http://%v:8103/hello", r.EIP("eth0")), "hello")
	if out, err := r.exec("plain", "get", "http://pinned:8080/hello"); err != nil || out != "hello" {
		t.Errorf("plain → pinned: %q, %v", out, err)
	}
	s, err := r.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range s.Endpoints {
		if e.Container == "plain" {
			t.Errorf("status lists a container that nobody asked about: %+v", e)
		}
	}
	r.clean()
}

// A network with an eip.* label is strict: pinned by default, nothing undecided leaves.
func (r *rig) watchStrict(t *testing.T) {
	r.start(t, "byNet", "--network", "strict")
	r.start(t, "own", "--network", "strict", "--label", "eip.nic=eth1")
	r.leaves(t, "byNet", r.EIP("eth2").String())
	r.leaves(t, "own", r.EIP("eth1").String())
	r.start(t, "gone", "--network", "strict", "--label", "eip.nic=eth7")
	r.held(t, "gone")
	r.problem("gone", "eth7", "no such NIC")
	r.clean()
}

func (r *rig) watchDefault(t *testing.T) {
	r.start(t, "onDefault", "--label", "eip.nic=eth1")
	r.leaves(t, "onDefault", r.EIP("eth1").String())
	r.start(t, "blocked", "--label", "eip.nic=eth9")
	r.problem("blocked", "eth9")
	r.held(t, "blocked")
	r.start(t, "hostMode", "--network", "host", "--label", "eip.nic=eth1")
	r.problem("hostMode", "no effect", "host")
	r.clean()
}

// Labels of the image are ignored, and a network's ceiling holds.
func (r *rig) watchTrust(t *testing.T) {
	if err := r.BuildImageAs(t.Context(), "eipnet/evil:latest", "LABEL eip.nic=eth2", "LABEL eip.except=0.0.0.0/0"); err != nil {
		t.Fatal(err)
	}
	r.docker("run", "-d", "--name", "evil", "--network", "stock", "eipnet/evil:latest")
	t.Cleanup(func() { r.docker("rm", "-f", "evil") })
	r.problem("evil", "image", "eip.nic=eth2")
	r.leaves(t, "evil", r.EIP("eth0").String())

	r.docker("network", "create", "-d", "eipnet", "--subnet", "172.22.0.0/16", "-o", "eip.allow=eth0,eth1", "ceiling")
	t.Cleanup(func() { r.docker("network", "rm", "ceiling") })
	r.in(t).refusedSaying([]string{"eip.allow=eth0,eth1"}, "run", "--rm", "--name", bad, "--network", "ceiling", "--label", "eip.nic=eth2", lab.Image, "get", siteIP)
	if got := r.docker("run", "--rm", "--network", "ceiling", "--label", "eip.nic=eth1", lab.Image, "get", siteIP); got != r.EIP("eth1").String() {
		t.Errorf("within the ceiling: left as %s", got)
	}
	r.docker("network", "create", "--subnet", "172.23.0.0/16", "--label", "eip.nic=eth1", "--label", "eip.lock=true", "locked")
	t.Cleanup(func() { r.docker("network", "rm", "locked") })
	r.start(t, "obeys", "--network", "locked")
	r.leaves(t, "obeys", r.EIP("eth1").String())
	r.start(t, "strays", "--network", "locked", "--label", "eip.nic=eth0")
	r.problem("strays", "locked")
	r.held(t, "strays")
	r.clean()
}

// A macvlan is out of reach: that is told of whoever is pinned, by a label or by
// another network, and of nobody else.
func (r *rig) watchBeside(t *testing.T) {
	r.docker("network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", "172.28.0.0/16", "lan")
	t.Cleanup(func() { r.docker("network", "rm", "lan") })
	r.start(t, "unsaid", "--network", "lan")
	r.start(t, "onLan", "--network", "lan", "--label", "eip.nic=eth1")
	r.problem("onLan", "network lan of driver macvlan", "instead")
	r.start(t, "byNet", "--network", "strict")
	r.docker("network", "connect", "lan", "byNet")
	r.problem("byNet", "network lan of driver macvlan", "docker network disconnect lan byNet")
	r.docker("network", "disconnect", "lan", "byNet")
	r.eventually("one problem to be left", func() error {
		s, err := r.status()
		if err == nil && len(s.Problems) != 1 {
			err = fmt.Errorf("problems: %v", s.Problems)
		}
		return err
	})
	r.leaves(t, "byNet", r.EIP("eth2").String())
}
