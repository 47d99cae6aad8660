package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/eipnet/eipnet/test/lab"
)

// act is one thing in a life, tried until it is done: the daemon may die of it.
type act struct {
	name string
	do   func() error
}

// TestCrashPoints has the daemon die right behind its first write to disk or
// kernel, then behind its second, and so on, through a life on a host that had
// nothing of eipnet's. Started again, it converges: no packet leaves wrongly,
// every container leaves as it is pinned, and nothing is left in the end.
func TestCrashPoints(t *testing.T) {
	r := prepare(t, lab.Config{Shape: lab.OneSubnet})
	if err := r.Host.Install(mortal(t), "mortal"); err != nil {
		t.Fatal(err)
	}
	points := r.life(t, 0)
	if points < 50 {
		t.Fatalf("only %d writes in a life", points)
	}
	stride := points/8 + 1
	if soak() {
		stride = 1
	}
	tried := 0
	for n := 1; n <= points && !t.Failed(); n += stride {
		tried++
		t.Run(fmt.Sprintf("behind write %d", n), func(t *testing.T) { r.in(t).life(t, n) })
	}
	r.report("writes behind which the daemon died, one after the other", fmt.Sprintf("%d of %d", tried, points), "")
}

// mortal is an eipnet that can be told behind which write to die.
func mortal(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "mortal")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "crashpoints", "-o", bin, "github.com/eipnet/eipnet/cmd/eipnet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building eipnet with crash points: %v\n%s", err, out)
	}
	return bin
}

var crashPoint = regexp.MustCompile(`crashpoint (\d+): `)

// life is a whole one, from the daemon's start to cleanup, in which it dies
// behind a write (0: it does not) and is started again. It returns the number of writes.
func (r *rig) life(t *testing.T, dies int) (writes int) {
	t.Helper()
	r.resetSniffers()
	program := []string{"env", fmt.Sprintf("CRASHPOINT=%d", dies), "mortal"}
	if dies == 0 {
		program[1] = "CRASHPOINT="
	}
	first, err := r.launch(program...)
	if err != nil {
		t.Fatal(err)
	}
	r.daemon = first
	back := r.revive()
	docker := func(args ...string) error {
		_, err := r.Docker(t.Context(), args...)
		return err
	}
	// What starts sends from its first instruction on, to the site's port for the NIC. It begins no
	// connection that the site would go on with when all of eipnet's is gone.
	starts := func(name, nic string, args ...string) func() error {
		return func() error {
			if err := docker("rm", "-f", name); err != nil {
				return err
			}
			site := netip.AddrPortFrom(lab.SiteAddr, r.portOf(nic)).String()
			return docker(append(append([]string{"run", "-d", "--name", name, "--label", "eip.nic=" + nic}, args...), lab.Image, "stream", site)...)
		}
	}
	leaves := func(name, nic string) act {
		return act{name + " leaves by " + nic, func() error { return r.left(name, siteIP, r.EIP(nic).String()) }}
	}
	gone := func(list ...string) func() error {
		return func() error {
			for _, name := range list {
				if err := docker("rm", "-f", name); err != nil {
					return err
				}
			}
			return nil
		}
	}
	network := func(name string, args ...string) func() error {
		return func() error {
			if out, err := r.Docker(t.Context(), "network", "ls", "-q", "--filter", "name=^"+name+"$"); err != nil || out != "" {
				return err
			}
			return docker(append(append([]string{"network", "create"}, args...), name)...)
		}
	}
	for _, a := range []act{
		{"an eipnet network", network("mine", "-d", "eipnet", "--subnet", "172.19.0.0/16", "-o", "eip.fallback=hold")},
		{"a strict network", network("strict", "--label", "eip.fallback=hold", "--subnet", "172.20.0.0/16")},
		{"a pinned container", starts("one", "eth1", "--network", "mine", "-p", "8090:8080/udp")},
		leaves("one", "eth1"),
		{"one on the strict network", starts("two", "eth2", "--network", "strict")},
		leaves("two", "eth2"),
		{"rebind", func() error { _, err := r.Host.Run(t.Context(), "eipnet", "rebind", "one", "eth2"); return err }},
		leaves("one", "eth2"),
		{"restart", func() error { return docker("restart", "-t", "0", "two") }},
		leaves("two", "eth2"),
		{"both are removed", gone("one", "two")},
		{"the networks are removed", func() error { return errors.Join(r.dropNetwork(t, "mine"), r.dropNetwork(t, "strict")) }},
	} {
		r.within(2*patience, a.name, a.do)
	}
	back()
	if err := r.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.onlyOwnNICs(t)
	r.clean()
	r.stop()
	r.on("eipnet", "cleanup")
	// The log has the lives before, too.
	if points := crashPoint.FindAllStringSubmatch(first.Log(), -1); len(points) > 0 {
		writes, _ = strconv.Atoi(points[len(points)-1][1])
	}
	if died := first.Err() != nil; died != (dies > 0 && dies <= writes) { // else it ended when it was told to
		t.Errorf("to die behind write %d (0: not): it wrote %d times, and ended with %v", dies, writes, first.Err())
	}
	return writes
}

// dropNetwork removes a network if it is there.
func (r *rig) dropNetwork(t *testing.T, name string) error {
	t.Helper()
	out, err := r.Docker(t.Context(), "network", "ls", "-q", "--filter", "name=^"+name+"$")
	if err == nil && out != "" {
		_, err = r.Docker(t.Context(), "network", "rm", name)
	}
	return err
}

// onlyOwnNICs checks that one never left by eth0, nor two by anything but eth2.
func (r *rig) onlyOwnNICs(t *testing.T) {
	t.Helper()
	for _, n := range r.NICs() {
		for _, f := range r.Sniffer(n.Name).Flows() {
			if f.Kind == lab.IPv4 && (f.DPort == r.portOf("eth1") && n.Name == "eth0" || f.DPort == r.portOf("eth2") && n.Name != "eth2") {
				t.Errorf("wrong packet: %v", f)
			}
		}
	}
}

// revive starts the daemon again when it dies, until the returned function is
// called, which waits until it is ready.
func (r *rig) revive() (back func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	p := r.daemon
	go func() {
		for {
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case <-p.Done():
			}
			var err error
			if p, err = r.launch(); err != nil {
				ended <- err
				return
			}
		}
	}()
	return func() {
		r.t.Helper()
		cancel()
		err := <-ended
		select {
		case <-p.Done(): // just now
			p, err = r.launch()
		default:
		}
		if err != nil {
			r.t.Fatal(err)
		}
		r.daemon = p
		r.ready()
	}
}
