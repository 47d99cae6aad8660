package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

// swarmNetwork is the bridge network that a swarm makes on each node that runs a task.
const swarmNetwork = "swarm_bridge"

// TestSwarm: services of a swarm, on a network that each node makes for itself
// and with ports in host mode, live on the NIC that a container label or an
// option of the network's endpoint names.
func TestSwarm(t *testing.T) {
	if engine() != pageEngine {
		t.Skip("older engines were not tried through")
	}
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.docker("swarm", "init", "--advertise-addr", r.Addr("eth0").String())
	t.Cleanup(func() {
		if out, err := r.Docker(t.Context(), "node", "ls"); t.Failed() {
			t.Log(out, err)
		}
	})
	r.docker("network", "create", "--config-only", "--subnet", "172.20.0.0/16", "-o", "com.docker.network.bridge.name=br-swarm", "node")
	r.docker("network", "create", "-d", "bridge", "--scope", "swarm", "--config-from", "node", swarmNetwork)
	services := []struct {
		nic  string
		port int
		args []string
	}{
		{"eth1", 8091, []string{"--network", swarmNetwork, "--container-label", "eip.nic=eth1"}},
		{"eth2", 8092, []string{"--network", "name=" + swarmNetwork + ",driver-opt=eip.nic=eth2"}},
	}
	for _, s := range services {
		args := append([]string{"service", "create", "-d", "--no-resolve-image", "--name", "on-" + s.nic, "--publish", fmt.Sprintf("mode=host,target=8080,published=%d", s.port)}, s.args...)
		r.docker(append(args, lab.Image)...)
	}
	for _, s := range services {
		var task string
		r.within(time.Minute, "the service on "+s.nic+" to run", func() error {
			task = r.docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=on-"+s.nic)
			if task == "" {
				return errors.New(r.docker("service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "on-"+s.nic))
			}
			return nil
		})
		r.answers(r.url(s.nic, s.port), r.EIP(s.nic).String())
		r.leaves(t, task, r.EIP(s.nic).String())
	}
	r.clean()
	r.well()
	r.docker("service", "rm", "on-eth1", "on-eth2")
	r.docker("swarm", "leave", "--force")
}
