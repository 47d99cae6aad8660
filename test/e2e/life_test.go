package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/test/lab"
)

// TestNothingIsLeft: after its containers and its network are gone, the host is
// as it was before, while the daemon goes on.
func TestNothingIsLeft(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "1"})
	state := func() string {
		t.Helper()
		s, err := r.HostState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	same := func(what, before string) {
		t.Helper()
		r.eventually(what+" to leave nothing behind", func() error {
			if diff := cmp.Diff(before, state()); diff != "" {
				return fmt.Errorf("(-before +after):\n%s", diff)
			}
			return nil
		})
	}
	empty := state()
	r.createNetwork()
	r.letThrough()
	withNetwork := state()
	r.docker("run", "-d", "--name", "app1", "--network", network, "--ip", "172.19.0.101", "--label", "eip.nic=eth1",
		"-p", "8090:8080", "-p", "8090:8080/udp", lab.Image)
	r.docker("run", "-d", "--name", "free", "--network", network, "-p", "8095:8080", lab.Image)
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	running := state()
	if !strings.Contains(running, ":8090") {
		t.Error("the published port is not reserved by a socket")
	}
	r.docker("stop", "-t", "0", "app1", "free")
	same("docker stop", withNetwork)
	r.docker("start", "app1", "free")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.docker("restart", "-t", "0", "app1")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.docker("rm", "-f", "app1", "free")
	same("docker rm", withNetwork)
	r.docker("network", "rm", network)
	same("docker network rm", empty)
	if s := r.well(); len(s.Endpoints)+len(s.Networks) > 0 {
		t.Errorf("status of an empty host: %+v", s)
	}
	r.clean()
}

// TestCrash: the daemon is killed under traffic and comes back; what is
// established goes on, new connections work throughout, nothing leaves wrong.
func TestCrash(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.docker("run", "-d", "--name", "app0", "--network", network, "--label", "eip.nic=eth0", "-p", "8090:8080", "-p", "8081:8081", lab.Image)
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8081:8081", lab.Image)
	var sessions []*session
	for _, nic := range []string{"eth0", "eth1"} {
		r.answers(r.url(nic, 8090), r.EIP(nic).String())
		sessions = append(sessions, openSession(t, "into the container by "+nic, r.Site, fmt.Sprintf("%v:8081", r.EIP(nic))))
	}
	r.docker("exec", "-d", "app1", "/app", "tcp", "--hold", "--interval", "20ms", lab.SiteAddr.String()+":7")
	outgoing := func() int {
		return r.Site.Count(func(s lab.Seen) bool { return s.Proto == "tcp" && s.Src.Addr() == r.EIP("eth1") && s.Detail != "" })
	}
	check := func(stage string) {
		t.Helper()
		for _, s := range sessions {
			s.goesOn(t)
		}
		seen := outgoing()
		r.eventually(stage+": the container's own session to go on", func() error {
			if now := outgoing(); now < seen+5 {
				return fmt.Errorf("%d lines more", now-seen)
			}
			return nil
		})
		for _, nic := range []string{"eth0", "eth1"} {
			r.answers(r.url(nic, 8090), r.EIP(nic).String())
		}
	}
	check("before")
	for range 3 {
		r.kill()
		check("killed")
		r.serve()
		check("back")
	}
	r.clean()
	if s := r.well(); len(s.Endpoints) != 2 {
		t.Errorf("status after the last start: %+v", s)
	}
}

// TestMasqueradeLoses: wherever others insert a masquerade rule, the pin's address wins.
func TestMasqueradeLoses(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	check := func() {
		t.Helper()
		for range 5 {
			r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
		}
	}
	check()
	stop := r.keepAsking(t, r.url("eth1", 8090), r.EIP("eth1").String())
	defer stop()
	r.on("iptables", "-t", "nat", "-I", "POSTROUTING", "1", "-s", subnet, "-j", "MASQUERADE")
	check()
	r.on("iptables", "-t", "nat", "-I", "POSTROUTING", "1", "-s", subnet, "-j", "SNAT", "--to-source", r.Addr("eth0").String())
	check()
	if _, err := r.Host.RunInput(t.Context(), strings.NewReader(`
		table ip rival { chain post { type nat hook postrouting priority srcnat; ip saddr 172.19.0.0/16 masquerade; }; }`), "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	check()
	r.docker("network", "create", "another") // Docker inserts its own at the top
	check()
	r.clean()
}

// keepAsking fetches the URL again and again until stopped, and insists on the answer each time.
func (r *rig) keepAsking(t *testing.T, url, want string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	asked := 0
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			got, err := r.SiteGet(ctx, url)
			if ctx.Err() != nil {
				return
			}
			asked++
			if strings.TrimSpace(got) != want {
				t.Errorf("meanwhile %s answered %q, %v", url, got, err)
			}
		}
	}()
	return func() {
		cancel()
		<-done
		if asked == 0 {
			t.Error("nothing was asked meanwhile")
		}
	}
}

// TestNeighbours: containers of one network see each other's own addresses and names.
func TestNeighbours(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "one", "--ip", "172.19.0.100", "--label", "eip.nic=eth0")
	r.run(t, "two", "--ip", "172.19.0.101", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.run(t, "free", "--ip", "172.19.0.102")
	for _, bridged := range []string{"0", "1"} {
		if err := r.Host.Sysctl("net.bridge.bridge-nf-call-iptables", bridged); err != nil {
			t.Fatal(err)
		}
		for from, addr := range map[string]string{"one": "172.19.0.100", "free": "172.19.0.102"} {
			out, err := r.exec(from, "get", "http://two:8080/remote")
			if err != nil || !strings.HasPrefix(out, addr) {
				t.Errorf("bridge-nf-call-iptables=%s: two sees %s as %q (%v), want %s", bridged, from, out, err, addr)
			}
			// Its published address works from inside too.
			out, err = r.exec(from, "get", fmt.Sprintf("http://%v:8090/hello", r.Addr("eth1")))
			if err != nil || out != "hello" {
				t.Errorf("bridge-nf-call-iptables=%s: %s → two's published address: %q, %v", bridged, from, out, err)
			}
		}
		if out, err := r.exec("two", "get", fmt.Sprintf("http://%v:8090/hello", r.Addr("eth1"))); err != nil || out != "hello" {
			t.Errorf("bridge-nf-call-iptables=%s: two → its own published address: %q, %v", bridged, out, err)
		}
		if out, err := r.exec("one", "lookup", "two"); err != nil || !strings.Contains(out, "172.19.0.101") {
			t.Errorf("the embedded DNS says %q, %v", out, err)
		}
	}
	if out, err := r.HostGet(t.Context(), r.Addr("eth0"), fmt.Sprintf("http://%v:8090/hello", r.Addr("eth1"))); err != nil || strings.TrimSpace(out) != "hello" {
		t.Errorf("host → published address: %q, %v", out, err)
	}
	r.clean()
}
