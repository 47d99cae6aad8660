package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/test/lab"
)

// TestSystemd: make install, and the units under a real systemd, hardened as
// they are: the main job, ports below 1024 too; a restart under traffic; a daemon
// that hangs; and uninstalling, which leaves the host as it was.
func TestSystemd(t *testing.T) {
	if engine() != pageEngine {
		t.Skip("systemd boots in the newest root only")
	}
	r := prepare(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "2"})
	r.on("rm", "/usr/local/bin/eipnet")
	sd, err := r.BootSystemd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := sd.Run(context.Background(), "journalctl", "-u", "eip*", "-u", "web", "-u", "server", "--no-pager"); t.Failed() {
			t.Log(out, err)
		}
		if err := sd.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	files := func() string { return r.on("find", "/usr/local", "/etc", "/run/docker/plugins", "-type", "f") }
	before, filesBefore := r.hostState(), files()
	r.make("install", "BIN="+binary(t))
	on := func(name string, args ...string) string {
		t.Helper()
		out, err := sd.Run(t.Context(), name, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if out := on("systemd-analyze", "verify", "--man=no", "eipnet.service", "eipnet-restore.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if err := r.Host.WriteFile("/etc/default/eipnet", []byte("EIPNET_EIP="+r.eips()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A watchdog of a test's patience.
	if err := r.Host.WriteFile("/etc/systemd/system/eipnet.service.d/watchdog.conf", []byte("[Service]\nWatchdogSec=5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	on("systemctl", "daemon-reload")
	on("systemctl", "enable", "--now", "eipnet-restore", "eipnet")
	for property, want := range map[string][]string{"After": {"eipnet.service", "eipnet-restore.service"}, "Requires": {"eipnet-restore.service"}} {
		got := strings.Fields(strings.TrimPrefix(on("systemctl", "show", "-p", property, "docker.service"), property+"="))
		for _, unit := range want {
			if !slices.Contains(got, unit) {
				t.Errorf("docker.service: %s=%v lacks %s", property, got, unit)
			}
		}
	}
	r.eventually("the unit to see Docker", r.seesDocker)
	r.createNetwork()
	r.docker("run", "-d", "--name", "app0", "--network", network, "--label", "eip.nic=eth0", "-p", "80:8080", lab.Image)
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.public="+r.EIP("eth1").String(), "-p", "80:8080", "-p", "81:8081", lab.Image)
	pins := []pin{{"app0", "eth0", 80}, {"app1", "eth1", 80}}
	r.livePinned(pins)
	r.well()

	session := openSession(t, "with app1", r.Site, fmt.Sprintf("%v:81", r.EIP("eth1")))
	on("systemctl", "restart", "eipnet")
	session.goesOn(t)
	r.livePinned(pins)
	r.eventually("the unit to see Docker again", r.seesDocker)
	r.eventually("systemd to know what there is", func() error {
		if out := on("systemctl", "show", "-p", "StatusText", "eipnet"); !strings.Contains(out, " 2 endpoints, 0 problems") {
			return fmt.Errorf("it knows %q", out)
		}
		return nil
	})

	hung := on("systemctl", "show", "-p", "MainPID", "--value", "eipnet")
	on("kill", "-STOP", hung)
	r.livePinned(pins)
	r.eventually("the hung daemon to be replaced", func() error {
		if pid := on("systemctl", "show", "-p", "MainPID", "--value", "eipnet"); pid == hung || pid == "0" {
			return errors.New("it is not")
		}
		return r.seesDocker()
	})
	session.goesOn(t)
	r.livePinned(pins)

	session.end()
	r.docker("rm", "-f", "app0", "app1")
	r.docker("network", "rm", network)
	r.documentedUnits(on)
	dockerGoesOn := r.standInDocker(t, on)
	on("systemctl", "disable", "--now", "eipnet", "eipnet-restore")
	dockerGoesOn("disable --now")
	r.on("eipnet", "cleanup")
	r.make("uninstall")
	r.on("rm", "-r", "/etc/default/eipnet", "/etc/systemd/system/eipnet.service.d")
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(r.hostState(), "\n")); diff != "" {
		t.Errorf("uninstalling leaves something behind (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(filesBefore, files()); diff != "" {
		t.Errorf("uninstalling leaves files behind (-before +after):\n%s", diff)
	}
	if soak() { // making the tool that makes the package takes longer than all the rest
		r.debianPackage(t, on)
	}
}

// debianPackage installs what make deb makes: the unit runs and pins. Installing
// it again restarts the daemon, and removing it leaves pins in force where there
// are containers. Purging it with nothing left leaves the host as it was.
func (r *rig) debianPackage(t *testing.T, on func(name string, args ...string) string) {
	t.Helper()
	files := func() string { return r.on("find", "/usr", "/etc", "/var/lib/eipnet", "-xdev", "!", "-type", "d") }
	r.on("mkdir", "-p", "/var/lib/eipnet", "/root/deb")
	before, filesBefore := r.hostState(), files()
	r.make("deb", "BIN="+binary(t), "DEB="+r.Host.Path("/root/deb"))
	install := func() {
		t.Helper()
		on("sh", "-ec", "dpkg -i /root/deb/*.deb")
		if out := on("systemctl", "is-active", "eipnet", "eipnet-restore"); out != "active\nactive" {
			t.Errorf("the package's units are %q", out)
		}
	}
	pid := func() string { return on("systemctl", "show", "-p", "MainPID", "--value", "eipnet") }
	install()
	r.createNetwork()
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.nic=eth1", "-p", "80:8080", lab.Image)
	pins := []pin{{"app1", "eth1", 80}}
	r.livePinned(pins)
	first := pid()
	install()
	if pid() == first {
		t.Error("installing a package anew does not restart the daemon")
	}
	r.livePinned(pins)
	dockerGoesOn := r.standInDocker(t, on)
	on("dpkg", "-r", "eipnet")
	dockerGoesOn("dpkg -r")
	r.livePinned(pins)
	if out := r.on("nft", "list", "tables"); !strings.Contains(out, "table inet eipnet") {
		t.Errorf("removing the package has taken pins away that containers need: %s", out)
	}
	install()
	r.livePinned(pins)
	r.docker("rm", "-f", "app1")
	r.docker("network", "rm", network)
	on("dpkg", "-P", "eipnet")
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(r.hostState(), "\n")); diff != "" {
		t.Errorf("purging the package leaves something behind (-before +after):\n%s", diff)
	}
	r.on("mkdir", "-p", "/var/lib/eipnet")
	if diff := cmp.Diff(filesBefore, files()); diff != "" {
		t.Errorf("purging the package leaves files behind (-before +after):\n%s", diff)
	}
}

// standInDocker starts a docker.service, which the lab's engine is not: its unit
// requires eipnet-restore, as the real one does, and runs something harmless.
// The function that it returns reports one that did not go on, and takes it away.
func (r *rig) standInDocker(t *testing.T, on func(name string, args ...string) string) (goesOn func(after string)) {
	t.Helper()
	const unit = "/etc/systemd/system/docker.service"
	if err := r.Host.WriteFile(unit, []byte("[Service]\nExecStart=/bin/sleep infinity\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	on("systemctl", "daemon-reload")
	on("systemctl", "start", "docker")
	pid := func() string { return on("systemctl", "show", "-p", "MainPID", "--value", "docker") }
	first := pid()
	return func(after string) {
		t.Helper()
		if now := pid(); now != first || now == "0" {
			t.Errorf("after %s docker.service is process %s, and was %s", after, now, first)
		}
		on("systemctl", "stop", "docker")
		r.on("rm", unit)
		on("systemctl", "daemon-reload")
	}
}

// make runs a target of the repository's Makefile for the host.
func (r *rig) make(target string, settings ...string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "make", append([]string{"-C", "../..", target, "DESTDIR=" + r.Host.Path("/")}, settings...)...)
	for _, v := range os.Environ() { // of a make that runs the tests
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

// hostState is all of the host that eipnet could change.
func (r *rig) hostState() string {
	r.t.Helper()
	s, err := r.HostState(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}
