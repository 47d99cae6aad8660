package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/test/lab"
)

// TestBadInput: each mistake is an error of the docker command, which says what
// is wrong and what would be right.
func TestBadInput(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	create := func(args ...string) []string {
		return append(append([]string{"network", "create", "-d", "eipnet"}, args...), "bad")
	}
	run := func(args ...string) []string {
		all := append([]string{"run", "--rm", "--name", "bad"}, args...)
		return append(all, lab.Image, "get", "http://127.0.0.1/")
	}
	r.createNetwork()
	r.run(t, "good", "--label", "eip.nic=eth0", "-p", "8090:8080")
	l := listenOnHost(t, r, r.Addr("eth1").String()+":8096")
	defer l.Close()
	before, err := r.HostState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const forms = "accepted: eip.nic=eth1"
	const nics = "eth0 (172.31.0.8"
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"network: NIC that is not there", create("--subnet", "172.20.0.0/16", "-o", "eip.nic=eth9"), []string{"eip.nic=eth9", "no such NIC", nics, "eth1 (172.31.0.14"}},
		{"network: unknown key", create("--subnet", "172.20.0.0/16", "-o", "eip.nci=eth1"), []string{"eip.nci", forms}},
		{"network: unknown Docker option", create("--subnet", "172.20.0.0/16", "-o", "com.docker.network.bridge.nam=x"), []string{"com.docker.network.bridge.nam", "com.docker.network.bridge.name"}},
		{"network: bridge name in use by a link", create("--subnet", "172.20.0.0/16", "-o", "com.docker.network.bridge.name=eth1"), []string{"bridge name eth1 is already in use"}},
		{"network: bridge name in use by Docker", create("--subnet", "172.20.0.0/16", "-o", "com.docker.network.bridge.name=docker0"), []string{"bridge name docker0 is already in use"}},
		{"network: bridge name in use by us", create("--subnet", "172.20.0.0/16", "-o", "com.docker.network.bridge.name="+bridge), []string{"bridge name " + bridge + " is already in use"}},
		{"network: subnet of a NIC", create("--subnet", "172.31.0.0/24"), []string{"172.31.0.0/24", "eth0"}},
		{"network: subnet of another network", create("--subnet", subnet), []string{"overlap"}},
		{"network: address of no NIC", create("--subnet", "172.20.0.0/16", "-o", "eip.ip=172.31.0.99"), []string{"172.31.0.99", nics}},
		{"endpoint: option without a value", run("--network", "name="+network+",driver-opt=eip.nic="), []string{"eip.nic", forms}},
		{"endpoint: NIC that is not there", run("--network", "name="+network+",driver-opt=eip.nic=eth9"), []string{"eip.nic=eth9", nics}},
		{"label: NIC that is not there", run("--network", network, "--label", "eip.nic=eth9"), []string{"eip.nic=eth9", "no such NIC", nics}},
		{"label: unknown key", run("--network", network, "--label", "eip.nci=eth1"), []string{"eip.nci", forms}},
		{"label: EIP that nobody mapped", run("--network", network, "--label", "eip.public=8.8.4.4"), []string{"8.8.4.4", "--eip"}},
		{"two selectors at once", run("--network", network, "--label", "eip.nic=eth1", "--label", "eip.ip=172.31.0.8"), []string{"eip.ip=172.31.0.8 and eip.nic=eth1", forms}},
		{"port in use by a container", run("--network", network, "--label", "eip.nic=eth0", "-p", "8090:8080"), []string{"Bind for 172.31.0.8:8090 failed: port is already allocated"}},
		{"port in use by a program", run("--network", network, "--label", "eip.nic=eth1", "-p", "8096:8080"), []string{"Bind for 172.31.0.14:8096 failed: port is already allocated"}},
		{"host address that is not there", run("--network", network, "-p", "203.0.113.77:8097:8080"), []string{"203.0.113.77", "neither on this host nor a known EIP", "172.31.0.14"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := r.refused(tc.args...)
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("docker said %q, which lacks %q", got, want)
				}
			}
			// --rm does not remove what never started.
			if strings.HasPrefix(tc.args[0], "run") {
				_, _ = r.Docker(t.Context(), "rm", "-f", "bad")
			}
		})
	}
	after, err := r.HostState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("refused commands left something behind (-before +after):\n%s", cmp.Diff(before, after))
	}
	r.answers(r.url("eth0", 8090), r.EIP("eth0").String())
	r.clean()
}

func listenOnHost(t *testing.T, r *rig, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := r.InHost(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return l
}
