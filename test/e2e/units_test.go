package e2e

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// unitBlock is a unit in a page: fenced, its name in the first line.
var unitBlock = regexp.MustCompile("(?s)```ini\n# (\\S+\\.service)\n(.*?)```\n")

// documentedUnits runs the units of docs/programs.md as they stand there, with
// a program of the lab's for theirs.
func (r *rig) documentedUnits(on func(name string, args ...string) string) {
	r.t.Helper()
	page, err := os.ReadFile("../../docs/programs.md")
	if err != nil {
		r.t.Fatal(err)
	}
	units := unitBlock.FindAllStringSubmatch(string(page), -1)
	if len(units) != 3 {
		r.t.Fatalf("the page has %d units, want web, eip-web and server", len(units))
	}
	app, err := r.BuildApp(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.Host.Install(app, "app"); err != nil {
		r.t.Fatal(err)
	}
	files := map[string]string{
		"/usr/local/bin/server":   "#!/bin/sh\ncurl -sS http://" + lab.SiteName + "/ip >/tmp/asked-by-name\nexec app serve \"$@\"\n",
		"/etc/eipnet/resolv.conf": r.on("cat", "/etc/resolv.conf"),
	}
	for _, u := range units {
		files["/etc/systemd/system/"+u[1]] = u[2]
	}
	for path, text := range files {
		if err := r.Host.WriteFile(path, []byte(text), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	on("systemctl", "daemon-reload")
	eth1 := r.EIP("eth1").String()
	works := func() {
		r.t.Helper()
		// Not before: by an unmanaged NIC the host refuses as it would without eipnet.
		r.eventually("the program to be pinned", func() error {
			s, err := r.status()
			if err == nil && (len(s.Endpoints) != 1 || s.Endpoints[0].State != plan.StatePinned) {
				err = fmt.Errorf("there are %+v", s.Endpoints)
			}
			return err
		})
		r.answers(r.url("eth1", 8090), eth1)
		if got := strings.TrimSpace(r.on("cat", "/tmp/asked-by-name")); got != eth1 {
			r.t.Errorf("asked by name it left as %q", got)
		}
		r.on("rm", "/tmp/asked-by-name")
	}
	show := func(unit, property string) string { return on("systemctl", "show", "-p", property, "--value", unit) }
	ended := func(unit string) {
		r.t.Helper()
		if got := show(unit, "ActiveState"); got != "inactive" {
			r.t.Errorf("stopped, %s is %q", unit, got)
		}
	}

	on("systemctl", "start", "web")
	works()
	on("systemctl", "stop", "web")
	ended("web")

	on("systemctl", "enable", "server")
	on("systemctl", "start", "eip-web")
	works()
	first := show("server", "MainPID")
	on("systemctl", "kill", "-s", "KILL", "eip-web")
	r.eventually("the namespace's unit and its server to be started again", func() error {
		if pid := show("server", "MainPID"); pid == first || pid == "0" {
			return errors.New("the server is not")
		}
		if got := show("server", "ActiveState"); got != "active" {
			return fmt.Errorf("the server is %s", got)
		}
		return nil
	})
	works()
	on("systemctl", "stop", "eip-web")
	ended("eip-web")
	ended("server")
	if left := r.on("ls", "/run/netns"); left != "" {
		r.t.Errorf("namespaces left: %s", left)
	}
	r.clean()
	on("systemctl", "disable", "server")
	for path := range files {
		r.on("rm", path)
	}
	r.on("rm", "/usr/local/bin/app")
	on("systemctl", "daemon-reload")
}
