package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

// TestBoot: a host comes up with containers that are always restarted. With
// eipnet that takes as long as without; and if eipnet's daemon is broken, the
// oneshot ahead of Docker has seen to it that strict networks hold.
func TestBoot(t *testing.T) {
	containers := 10
	if soak() {
		containers = 50
	}
	r := prepare(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "2"})
	r.docker("network", "create", "--subnet", "172.20.0.0/16", "stock")
	without := r.boot(t, "stock", containers, func() {})

	r.serve()
	r.createNetwork()
	with := r.boot(t, network, containers, func() {
		r.stop()
		r.forgetBoot(t)
		r.on("eipnet", "restore")
		r.spawn()
		r.eventually("the driver's socket", func() error {
			_, err := r.Host.Run(t.Context(), "test", "-S", "/run/docker/plugins/eipnet.sock")
			return err
		})
	})
	ratio := float64(with) / float64(without)
	r.report(fmt.Sprintf("boot with %d containers, against Docker's own bridge", containers), fmt.Sprintf("%.2f (%v, %v)", ratio, with.Round(time.Millisecond), without.Round(time.Millisecond)), "1.10")
	if ratio > 3 {
		t.Errorf("the boot takes %.1f times as long with eipnet", ratio)
	}

	// Strict, and started while the daemon does not come up.
	r.docker("network", "create", "--subnet", "172.21.0.0/16", "--label", "eip.nic=eth1", "-o", "com.docker.network.bridge.name=br-strict", "strict")
	r.docker("run", "-d", "--restart", "always", "--name", "strict1", "--network", "strict", lab.Image)
	r.leaves(t, "strict1", r.EIP("eth1").String())
	r.eventually("the strict network to be remembered", func() error {
		s, err := r.status()
		if err == nil && len(s.Problems) > 0 {
			err = fmt.Errorf("%v", s.Problems)
		}
		return err
	})
	if err := r.StopEngine(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.forgetBoot(t)
	if out := r.on("eipnet", "restore"); !strings.Contains(out, "restored: 2 networks locked") {
		t.Errorf("restore said %q", out)
	}
	if err := r.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.eventually("strict1 to run", func() error { return r.running(1, "name=strict1") })
	r.resetSniffers()
	r.held(t, "strict1")
	r.clean()
	r.serve()
	r.leaves(t, "strict1", r.EIP("eth1").String())
	if out := r.on("eipnet", "restore"); !strings.Contains(out, "the daemon runs (process ") {
		t.Errorf("restore beside a daemon said %q", out)
	}
	r.clean()
}

// boot makes containers on the network, stops the engine, has the rest done,
// starts the engine again and returns how long it takes until all of them run.
func (r *rig) boot(t *testing.T, network string, containers int, rest func()) time.Duration {
	t.Helper()
	var names []string
	for i := range containers {
		names = append(names, fmt.Sprintf("%s-%d", network, i))
		r.docker("run", "-d", "--restart", "always", "--name", names[i], "--network", network, "--label", "eip.nic=eth1", lab.Image)
	}
	if err := r.StopEngine(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest()
	began := time.Now()
	if err := r.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.eventually("all containers to run", func() error { return r.running(containers, "network="+network) })
	took := time.Since(began)
	r.docker(append([]string{"rm", "-f"}, names...)...)
	return took
}

// running is nil when so many containers of the filter run.
func (r *rig) running(want int, filter string) error {
	out, err := r.Docker(r.t.Context(), "ps", "-q", "--filter", "status=running", "--filter", filter)
	if n := len(strings.Fields(out)); err == nil && n != want {
		err = fmt.Errorf("%d run", n)
	}
	return err
}

// forgetBoot takes away what a host's restart takes away.
func (r *rig) forgetBoot(t *testing.T) {
	t.Helper()
	r.deleteRules()
	r.on("nft", "flush", "ruleset")
	r.on("sh", "-c", `for l in $(ip -o link | sed -n 's/^[0-9]*: \([^:@]*\).*/\1/p' | grep -E '^(eip|br-|docker)'); do ip link del $l || ! ip link show $l; done`)
	for _, table := range []string{"8100", "8101", "8102", "8199"} {
		r.on("sh", "-c", "ip route flush table "+table+" 2>/dev/null; ip -6 route flush table "+table+" 2>/dev/null; true")
	}
	if err := r.Host.Sysctl("net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
}
