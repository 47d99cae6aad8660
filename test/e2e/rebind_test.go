package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// TestRebind: running containers move to another NIC under traffic, on eipnet
// networks and on Docker's.
func TestRebind(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "1"}, "--collect-after", "5s", "--nics", allNICs)
	r.createNetwork()
	r.docker("network", "create", "--subnet", "172.20.0.0/16", "stock")
	r.docker("network", "create", "-d", "eipnet", "--subnet", "172.22.0.0/16", "-o", "eip.allow=eth0,eth1", "ceiling")
	t.Run("eipnet network", func(t *testing.T) { r.rebindUnderTraffic(t, network) })
	t.Run("stock network", func(t *testing.T) { r.rebindUnderTraffic(t, "stock") })
	t.Run("to the host's way", r.rebindToHost)
	t.Run("remembered", r.rebindRemembered)
	t.Run("refused", r.rebindRefused)
}

// rebind runs `eipnet rebind --json` and returns its answer.
func (r *rig) rebind(args ...string) (api.Rebound, error) {
	var out api.Rebound
	said, err := r.Host.Run(r.t.Context(), "eipnet", append([]string{"rebind", "--json"}, args...)...)
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(said), &out)
}

func (r *rig) rebindUnderTraffic(t *testing.T, on string) {
	args := []string{"--network", on}
	publish := func(nic string, ports ...string) (out []string) {
		for _, p := range ports {
			if on == "stock" { // Docker's ports stay where they are
				p = r.Addr(nic).String() + ":" + p
			}
			out = append(out, "-p", p)
		}
		return out
	}
	r.start(t, "web", append(append(slices.Clone(args), "--label", "eip.nic=eth1"), publish("eth1", "8090:8080", "8081:8081")...)...)
	r.start(t, "other", append(append(slices.Clone(args), "--label", "eip.nic=eth1"), publish("eth1", "8191:8080", "8181:8081")...)...)
	r.start(t, "free", append(slices.Clone(args), publish("eth0", "8281:8081")...)...)
	r.leaves(t, "web", r.EIP("eth1").String())
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.resetSniffers()
	stay := []*session{
		openSession(t, "into other", r.Site, fmt.Sprintf("%v:8181", r.EIP("eth1"))),
		openSession(t, "into free", r.Site, fmt.Sprintf("%v:8281", r.EIP("eth0"))),
	}
	mine := openSession(t, "into web", r.Site, fmt.Sprintf("%v:8081", r.EIP("eth1")))
	mine.goesOn(t)
	for _, name := range []string{"web", "other"} {
		r.docker("exec", "-d", name, "/app", "tcp", "--hold", "--interval", "10ms", lab.SiteAddr.String()+":7")
	}
	flows := func(of string) string {
		return r.on("conntrack", "-L", "--src", r.address(of, on), "--dst", lab.SiteAddr.String(), "-p", "tcp", "--dport", "7", "-o", "id")
	}
	r.eventually("both to have a session of their own", func() error {
		if conntrackID(flows("web")) == "" || conntrackID(flows("other")) == "" {
			return errors.New("no flow yet")
		}
		return nil
	})
	others := conntrackID(flows("other"))

	moved, err := r.rebind("web", "eip.nic=eth2")
	if err != nil {
		t.Fatal(err)
	}
	if len(moved.Before) != 1 || moved.Before[0].NIC != "eth1" || len(moved.After) != 1 || moved.After[0].NIC != "eth2" || moved.After[0].Public != r.EIP("eth2") {
		t.Errorf("answered %+v", moved)
	}
	if got, err := r.exec("web", "get", siteIP); err != nil || got != r.EIP("eth2").String() {
		t.Errorf("after the command has returned web left as %q, %v", got, err)
	}
	if on == network {
		r.answers(r.url("eth2", 8090), r.EIP("eth2").String())
	}
	for _, s := range stay {
		s.goesOn(t)
	}
	if now := conntrackID(flows("other")); now != others {
		t.Errorf("other's own flow %s became %q", others, now)
	}
	// What web's old session still says is no part of any flow that leaves as eth1.
	if left := flows("web"); strings.Contains(left, "dst="+r.Addr("eth1").String()) {
		t.Errorf("a flow of web still leaves as eth1:\n%s", left)
	}
	r.clean()

	if moved, err = r.rebind("web", "--clear"); err != nil || len(moved.After) != 1 || moved.After[0].NIC != "eth1" {
		t.Errorf("cleared: %+v, %v", moved, err)
	}
	r.leaves(t, "web", r.EIP("eth1").String())
	for _, s := range stay {
		s.goesOn(t)
	}
	r.clean()
}

// Connections that began by a NIC do not go on by the host's routing, with that
// NIC's address, when their container is not pinned any more or where they go to
// is excepted.
func (r *rig) rebindToHost(t *testing.T) {
	for _, on := range []string{network, "stock"} {
		for what, args := range map[string][]string{"cleared": {"--clear"}, "excepted": {"eth1", "eip.except=" + lab.SiteAddr.String() + "/32"}} {
			name := what + "-on-" + on
			r.start(t, name, "--network", on)
			if _, err := r.rebind(name, "eth1"); err != nil {
				t.Fatal(err)
			}
			r.docker("exec", "-d", name, "/app", "tcp", "--hold", "--interval", "1ms", lab.SiteAddr.String()+":7")
			r.eventually("it to have a session", func() error {
				flows := r.on("conntrack", "-L", "--src", r.address(name, on), "-p", "tcp", "--dport", "7")
				if !strings.Contains(flows, "dst="+r.Addr("eth1").String()) {
					return errors.New("no flow yet")
				}
				return nil
			})
			r.resetSniffers()
			if _, err := r.rebind(append([]string{name}, args...)...); err != nil {
				t.Fatal(err)
			}
			r.leaves(t, name, r.EIP("eth0").String())
			r.clean()
		}
	}
}

// address is a container's address on a network.
func (r *rig) address(container, network string) string {
	return r.docker("inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), container)
}

// What was said stays until the container is removed: over restarts of the
// container and of the daemon, and though its label says otherwise.
func (r *rig) rebindRemembered(t *testing.T) {
	r.resetSniffers()
	for _, on := range []string{network, "stock"} {
		r.docker("run", "-d", "--name", "kept", "--network", on, "--label", "eip.nic=eth1", lab.Image)
		if said := r.on("eipnet", "rebind", "kept", "eth2"); !strings.Contains(said, "eth1 (") || !strings.Contains(said, "-> eth2 (") {
			t.Errorf("eipnet rebind printed %q", said)
		}
		r.kill()
		r.serve()
		r.leaves(t, "kept", r.EIP("eth2").String())
		r.docker("restart", "-t", "0", "kept")
		r.leaves(t, "kept", r.EIP("eth2").String())
		r.docker("rm", "-f", "kept")
		r.docker("run", "-d", "--name", "kept", "--network", on, "--label", "eip.nic=eth1", lab.Image)
		r.leaves(t, "kept", r.EIP("eth1").String())
		r.docker("rm", "-f", "kept")
	}
	// A stopped one has no flows to move, but what was said of it can be undone.
	r.start(t, "off", "--network", network)
	if _, err := r.rebind("off", "eth2"); err != nil {
		t.Fatal(err)
	}
	r.docker("stop", "-t", "0", "off")
	if _, err := r.rebind("off", "--clear"); err != nil {
		t.Error(err)
	}
	if _, err := r.rebind("off", "eth1"); err == nil || !strings.Contains(err.Error(), "off") {
		t.Errorf("rebinding a stopped container: %v", err)
	}
	r.clean()
}

func (r *rig) rebindRefused(t *testing.T) {
	r.resetSniffers()
	r.start(t, "below", "--network", "ceiling", "--label", "eip.nic=eth1")
	r.run(t, "taker", "--label", "eip.nic=eth2", "-p", "8300:8080")
	r.run(t, "mover", "--label", "eip.nic=eth1", "-p", "8300:8080")
	for _, c := range []string{"below", "taker", "mover"} {
		r.awaitState(c, plan.StatePinned)
	}
	for _, tc := range []struct{ container, to, want string }{
		{"below", "eth2", "eip.allow=eth0,eth1"},
		{"below", "eth7", "no such NIC on this host"},
		{"mover", "eth2", "8300/tcp"},
		{"nobody", "eth1", "nobody"},
		{"mover", "eip.nick=eth2", "unknown option eip.nick"},
	} {
		if _, err := r.rebind(tc.container, tc.to); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("eipnet rebind %s %s: %v, want %q", tc.container, tc.to, err, tc.want)
		}
	}
	r.leaves(t, "below", r.EIP("eth1").String())
	r.leaves(t, "mover", r.EIP("eth1").String())
	r.strangerIsRefused(t)
	r.clean()
}

// strangerIsRefused: whoever may connect, by a careless chmod, may not write.
func (r *rig) strangerIsRefused(t *testing.T) {
	socket := r.Host.Path("/run/eipnet/eipnet.sock")
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	status := r.on("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "eipnet", "status")
	if !strings.Contains(status, "mover") {
		t.Errorf("reading: %s", status)
	}
	out, err := r.Host.Run(t.Context(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "eipnet", "rebind", "mover", "eth2")
	if err == nil || !strings.Contains(err.Error(), "only root") {
		t.Errorf("a stranger's rebind: %q, %v", out, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
}
