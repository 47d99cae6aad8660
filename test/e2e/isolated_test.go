package e2e

import (
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// TestIsolatedStock: by the bridge of an isolated network of Docker's, whose IPv6
// is off, nothing is tried to be routed, and all else goes on.
func TestIsolatedStock(t *testing.T) {
	if engine() != pageEngine {
		t.Skip("Docker has isolated networks from 28 on")
	}
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.docker("network", "create", "--internal", "--ipv6", "--subnet", "172.26.0.0/16", "--subnet", "fd00:26::/64", "--label", "eip.nic=eth1",
		"-o", "com.docker.network.bridge.name=isolated0",
		"-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated", "-o", "com.docker.network.bridge.gateway_mode_ipv6=isolated", "iso")
	r.start(t, "inside", "--network", "iso")
	r.decided("inside", plan.StatePinned)
	r.createNetwork("--ipv6", "--subnet", subnet6)
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.well()
	r.clean()
}
