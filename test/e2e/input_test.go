package e2e

import (
	"errors"
	"net"
	"slices"
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
		return append(append([]string{"network", "create", "-d", "eipnet"}, args...), bad)
	}
	run := func(args ...string) []string {
		all := append([]string{"run", "--rm", "--name", bad}, args...)
		return append(all, lab.Image, "get", "http://127.0.0.1/")
	}
	r.createNetwork()
	r.run(t, "good", "--label", "eip.nic=eth0", "-p", "8090:8080")
	r.letThrough()
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
			r.in(t).refusedSaying(tc.want, tc.args...)
		})
	}
	r.eventually("nothing to be left of refused commands", func() error {
		after, err := r.HostState(t.Context())
		if diff := cmp.Diff(before, after); err == nil && diff != "" {
			err = errors.New("(-before +after):\n" + diff)
		}
		return err
	})
	r.answers(r.url("eth0", 8090), r.EIP("eth0").String())
	r.clean()
}

// bad is the name of what is refused.
const bad = "bad"

// refusedSaying runs a docker command that has to fail, and to say all of that.
// A wrong label is found by asking Docker: where its API takes longer than a start
// waits for it, the container runs, held, and its program has to fail. That tells
// nothing, and is tried again.
func (r *rig) refusedSaying(want []string, args ...string) {
	r.t.Helper()
	tries := 1
	if slices.Contains(args, "--label") {
		tries = 3
	}
	for try := 1; ; try++ {
		said := r.refused(args...)
		// --rm does not remove what never started.
		_, _ = r.Docker(r.t.Context(), "rm", "-f", bad)
		lacks := slices.DeleteFunc(slices.Clone(want), func(w string) bool { return strings.Contains(said, w) })
		if len(lacks) == 0 {
			return
		}
		if try == tries {
			r.t.Errorf("docker said %q, which lacks %q", said, lacks)
			return
		}
	}
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
