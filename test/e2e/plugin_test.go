package e2e

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/snat"
	"github.com/eipnet/eipnet/test/lab"
)

// pluginName is not plain eipnet: Docker would then look for `-d eipnet` in the
// plugin alone, and find it only as eipnet:latest.
const pluginName = "eipnet/eipnet:latest"

var etherAddress = regexp.MustCompile(`link/ether \S+`)

const maxRootfs = 25 << 20

// pluginDir puts what `make plugin` gives to docker plugin create on the host.
func (r *rig) pluginDir() string {
	r.t.Helper()
	const dir = "/tmp/plugin"
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{"../../plugin/rootfs.sh", dir + ".sh", 0o755},
		{"../../plugin/config.json", dir + "/config.json", 0o644},
		{binary(r.t), dir + "/rootfs/usr/local/bin/eipnet", 0o755},
	} {
		data, err := os.ReadFile(f.from)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := r.Host.WriteFile(f.to, data, f.mode); err != nil {
			r.t.Fatal(err)
		}
	}
	r.on("sh", dir+".sh", dir+"/rootfs")
	return dir
}

// size adds up the files below a folder of the host.
func (r *rig) size(dir string) int64 {
	r.t.Helper()
	var sum int64
	err := filepath.WalkDir(r.Host.Path(dir), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return sum
}

// enablePlugin enables the plugin with the lab's addresses and waits until it sees Docker.
func (r *rig) enablePlugin(name string) {
	r.t.Helper()
	start := time.Now()
	r.docker("plugin", "enable", name)
	r.t.Logf("docker plugin enable took %v", time.Since(start).Round(time.Millisecond))
	r.eventually("the plugin to answer and to see Docker", r.seesDocker)
}

// eips is what --eip says about the lab's NICs.
func (r *rig) eips() string {
	var out []string
	for _, n := range r.NICs() {
		out = append(out, fmt.Sprintf("%v=%v", n.EIP, n.Addr.Addr()))
	}
	return strings.Join(out, ",")
}

// TestPlugin: the article's scenario through the managed plugin, by each of its
// names. The plugin is disabled and enabled, and upgraded, under traffic:
// connections go on, nothing leaves by a wrong NIC, and everything is
// remembered, over a boot of the host with containers that always restart, too.
func TestPlugin(t *testing.T) {
	r := prepare(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "1", Unified: true})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.Engine().Tail(100))
		}
	})
	if err := r.ServeRegistry(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Sorted: Docker's own chains have another order after its restart.
	state := func() []string {
		s, err := r.HostState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lines := slices.Sorted(strings.SplitSeq(s, "\n"))
		for i, line := range lines {
			if strings.HasPrefix(line, "docker0:") { // made anew at boot
				lines[i] = etherAddress.ReplaceAllString(line, "")
			}
		}
		return lines
	}
	before := state()
	dir := r.pluginDir()
	if size := r.size(dir + "/rootfs"); size > maxRootfs {
		t.Errorf("the plugin's root has %d bytes, more than %d", size, maxRootfs)
	}
	r.docker("plugin", "create", pluginName, dir)
	r.docker("plugin", "set", pluginName, "EIPNET_EIP="+r.eips(), "EIPNET_LOG_LEVEL=debug")
	r.enablePlugin(pluginName)
	var pinned []pin
	for i, driver := range []string{"eipnet", "eipnet:latest", pluginName} {
		name := fmt.Sprintf("net%d", i)
		r.docker("network", "create", "-d", driver, "--subnet", fmt.Sprintf("172.%d.0.0/16", 19+i), name)
		for _, nic := range []string{"eth0", "eth1"} {
			p := pin{name + "-" + nic, nic, 8090 + i}
			r.docker("run", "-d", "--restart", "always", "--name", p.name, "--network", name, "--label", "eip.nic="+nic,
				"-p", fmt.Sprintf("%d:8080", p.port), "-p", fmt.Sprintf("%d:8081", p.port+100), lab.Image)
			pinned = append(pinned, p)
		}
	}
	r.livePinned(pinned)
	id := r.docker("plugin", "inspect", "-f", "{{.Id}}", pluginName)
	root := "/var/lib/docker/plugins/" + id + "/rootfs"
	if out := r.on(root+"/usr/local/bin/eipnet", "status"); !strings.Contains(out, "net0-eth0") {
		t.Errorf("eipnet status out of the plugin's root shows %q", out)
	}
	if err := r.InHost(func() error { return snat.ProbeCgroups(0) }); err == nil {
		r.onHost("onhost", "eth1", "serve", "--addr=:8070")
		r.decided("onhost", plan.StatePinned)
		r.seenAs("onhost", r.EIP("eth1").String())
		r.docker("rm", "-f", "onhost")
	}
	r.refusedSaying([]string{"eth7"}, "run", "--rm", "--name", bad, "--network", "net0", "--label", "eip.nic=eth7", lab.Image, "get", siteIP)

	var sessions []*session
	for _, p := range pinned {
		sessions = append(sessions, openSession(t, "with "+p.name, r.Site, fmt.Sprintf("%v:%d", r.EIP(p.nic), p.port+100)))
	}
	goOn := func() {
		t.Helper()
		for _, s := range sessions {
			s.goesOn(t)
		}
		r.livePinned(pinned)
	}
	r.docker("plugin", "disable", "-f", pluginName)
	goOn()
	r.enablePlugin(pluginName)
	goOn()

	next := lab.RegistryAddr + "/eipnet/eipnet:next"
	if err := r.Host.WriteFile(dir+"/rootfs/etc/next", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.docker("plugin", "create", next, dir)
	r.docker("plugin", "push", next)
	r.docker("plugin", "disable", "-f", pluginName)
	r.docker("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", pluginName, next)
	r.on("test", "-e", root+"/etc/next")
	r.enablePlugin(pluginName)
	goOn()
	if s := r.well(); len(s.Networks) != 3 || len(s.Endpoints) != len(pinned) {
		t.Errorf("status after the upgrade: %+v", s)
	}

	for _, s := range sessions {
		s.end()
	}
	containers := 5
	if soak() {
		containers = 50
	}
	r.docker("network", "create", "-d", "eipnet", "--subnet", "172.29.0.0/16", "boot")
	took := r.boot(t, "boot", containers, func() { r.forgetBoot(t) })
	r.report(fmt.Sprintf("boot with the plugin and %d containers", containers+len(pinned)), took.Round(time.Millisecond).String(), "")
	r.livePinned(pinned)
	for _, p := range pinned {
		r.docker("rm", "-f", p.name)
	}
	r.docker("network", "rm", "net0", "net1", "net2", "boot")
	r.docker("plugin", "disable", pluginName)
	r.on(root+"/usr/local/bin/eipnet", "cleanup", "--state-dir", "/var/lib/docker/plugins/"+id+"/propagated-mount")
	r.docker("plugin", "rm", pluginName)
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Errorf("the plugin leaves something behind (-before +after):\n%s", diff)
	}
}

// TestSocketWithoutDocker: the driver answers within 2 s of its start, though
// Docker's API takes calls and answers none, as it does while dockerd boots and
// waits for its plugins.
func TestSocketWithoutDocker(t *testing.T) {
	r := &rig{Lab: lab.Start(t, lab.Config{}), t: t}
	if err := r.Host.Install(binary(t), "eipnet"); err != nil {
		t.Fatal(err)
	}
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", r.Host.Path(lab.DockerSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	start := time.Now()
	r.spawn()
	socket := r.Host.Path("/run/docker/plugins/eipnet.sock")
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	r.eventually("the driver's answer", func() error {
		resp, err := client.Post("http://eipnet/NetworkDriver.GetCapabilities", "", nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), `"local"`) {
			return fmt.Errorf("it says %q, %w", text, err)
		}
		return nil
	})
	took := time.Since(start)
	t.Logf("answered after %v (target 2s)", took.Round(time.Millisecond))
	if took > 20*time.Second {
		t.Errorf("the driver answered only after %v:\n%s", took, r.daemon.Log())
	}
	if log := r.daemon.Log(); strings.Contains(log, "docker followed") {
		t.Errorf("somebody answered as Docker:\n%s", log)
	}
}

// pin is a container that lives on a NIC and publishes a port there.
type pin struct {
	name, nic string
	port      int
}

// livePinned fails the test unless all of them are reached by their EIP and leave as it.
func (r *rig) livePinned(pins []pin) {
	r.t.Helper()
	for _, p := range pins {
		r.answers(r.url(p.nic, p.port), r.EIP(p.nic).String())
	}
	r.clean()
}
