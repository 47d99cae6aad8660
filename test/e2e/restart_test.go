package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

// TestBootOrder: at boot eipnet starts before dockerd, with what it remembers;
// a container that dockerd starts by itself answers at once, though DOCKER-USER
// and FORWARD DROP came after eipnet's first pass.
func TestBootOrder(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.docker("run", "-d", "--restart", "always", "--name", "auto", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image)
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	if err := r.StopEngine(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.on("iptables", "-F")
	r.on("iptables", "-X")
	r.on("iptables", "-t", "nat", "-F")
	r.on("iptables", "-P", "FORWARD", "ACCEPT")
	r.on("ip", "link", "del", bridge)
	if err := r.Host.Sysctl("net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	r.spawn()
	r.eventually("the driver's socket", func() error {
		_, err := r.Host.Run(t.Context(), "test", "-S", "/run/docker/plugins/eipnet.sock")
		return err
	})
	if err := r.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	took := time.Since(start)
	r.report("first answer after the engine is up", took.Round(10*time.Millisecond).String(), "2s")
	if took > 20*time.Second {
		t.Errorf("the container answered only after %v", took)
	}
	// Until then the host itself refused the site's attempts, by the primary:
	// eth1 was nobody's yet. From now on nothing is foreign.
	r.resetSniffers()
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.clean()
}

// TestStop: a stopped daemon is no failure, and leaves what is pinned in place.
func TestStop(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.stop()
	if err := r.daemon.Err(); err != nil {
		t.Errorf("after SIGTERM the daemon ended with %v:\n%s", err, r.daemon.Tail(5))
	}
	for line := range strings.SplitSeq(r.daemon.Log(), "\n") {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, "docker-away") {
			t.Errorf("logged while stopping: %s", line)
		}
	}
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.serve()
	r.clean()
}

// TestUDPOverRestart: a server that pushes goes on from its published port.
func TestUDPOverRestart(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8090:8080/udp")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	c, err := r.SiteDial(t.Context(), "udp", fmt.Sprintf("%v:8090", r.EIP("eth1")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func(what string) {
		t.Helper()
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1500)
		if _, err := c.Read(buf); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	flow := func() string {
		return r.on("conntrack", "-L", "-p", "udp", "--orig-dst", r.Addr("eth1").String(), "-o", "id")
	}
	echo("before")
	before := flow()
	r.kill()
	echo("without the daemon")
	r.serve()
	echo("after")
	if id := conntrackID(before); id == "" || id != conntrackID(flow()) {
		t.Errorf("the flow was forgotten; before:\n%s\nafter:\n%s", before, flow())
	}
	r.clean()
}

func conntrackID(s string) string {
	_, id, _ := strings.Cut(s, "id=")
	id, _, _ = strings.Cut(strings.TrimSpace(id), " ")
	return strings.TrimSpace(id)
}

// TestReservation: a published TCP port cannot be taken, and is free afterwards.
// (No tool lists a socket that is bound and does not listen.)
func TestReservation(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	bind := func() error {
		return r.InHost(func() error {
			l, err := net.Listen("tcp", r.Addr("eth1").String()+":8090")
			if err == nil {
				l.Close()
			}
			return err
		})
	}
	if err := bind(); err != nil {
		t.Fatal(err)
	}
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image)
	if err := bind(); err == nil {
		t.Error("a program took the published port")
	}
	r.docker("rm", "-f", "app1")
	r.eventually("the port to be free", bind)
}

// TestCallersFromElsewhere: a published port is reached, and answers, from a
// VPN, from Docker's own networks whatever their bridge is called, and from the host.
func TestCallersFromElsewhere(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	vpn, err := r.AddVPNLeg(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.createNetwork()
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", r.Addr("eth0").String()+":8091:8080")
	r.run(t, "free", "-p", "8092:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.docker("network", "create", "-o", "com.docker.network.bridge.name=custom0", "custom")
	r.docker("run", "-d", "--name", "caller", "--network", "custom", lab.Image, "sleep")
	r.docker("run", "-d", "--name", "onDefault", lab.Image, "sleep")
	for _, url := range []string{
		fmt.Sprintf("http://%v:8090/hello", r.Addr("eth1")),
		fmt.Sprintf("http://%v:8091/hello", r.Addr("eth0")),
		fmt.Sprintf("http://%v:8092/hello", r.Addr("eth0")),
	} {
		for _, caller := range []string{"caller", "onDefault"} {
			if out, err := r.exec(caller, "get", url); err != nil || out != "hello" {
				t.Errorf("%s → %s: %q, %v", caller, url, out, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if out, err := vpn.Get(ctx, url); err != nil || strings.TrimSpace(out) != "hello" {
			t.Errorf("VPN → %s: %q, %v", url, out, err)
		}
		cancel()
	}
}

// pokeDocker makes an event, after which eipnet lists everything.
func (r *rig) pokeDocker() {
	r.t.Helper()
	r.docker("network", "create", "poke")
	r.docker("network", "rm", "poke")
}

// TestForgottenByDocker: what Docker removed while the daemon was away is collected.
func TestForgottenByDocker(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet}, "--collect-after", "1s")
	r.createNetwork()
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image)
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.kill()
	r.docker("rm", "-f", "app1")
	r.docker("network", "rm", network)
	r.serve()
	r.eventually("the leftovers to be collected", func() error {
		r.pokeDocker()
		s, err := r.status()
		if err == nil && len(s.Endpoints)+len(s.Networks) > 0 {
			err = fmt.Errorf("%d endpoints, %d networks", len(s.Endpoints), len(s.Networks))
		}
		return err
	})
	r.createNetwork()
	r.run(t, "app2", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
}
