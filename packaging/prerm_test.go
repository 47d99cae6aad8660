package packaging_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRemovalStopsDocker: docker.service requires eipnet-restore.service, so that
// systemd stops Docker with it: the package lets go of that link before it stops it.
func TestRemovalStopsDocker(t *testing.T) {
	for _, test := range []struct {
		name, argument string
		booted         bool
		want           string
	}{
		{"removed", "remove", true, `systemctl stop eipnet
eipnet cleanup
systemctl disable eipnet eipnet-restore
systemctl daemon-reload
systemctl stop eipnet-restore
`},
		{"removed where systemd does not run", "remove", false, "systemctl disable eipnet eipnet-restore\n"},
		{"upgraded", "upgrade", true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, script(t, "prerm", test.booted, test.argument)); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

// TestUpgradeLeavesRestoreAlone: to restart eipnet-restore would restart Docker.
func TestUpgradeLeavesRestoreAlone(t *testing.T) {
	want := "systemctl daemon-reload\nsystemctl try-restart eipnet\n"
	if diff := cmp.Diff(want, script(t, "postinst", true, "configure", "1.0")); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

// TestUnitsWaitForTheStateAndNotForEver: /var/lib may be a file system of its
// own, and what Docker waits for has to end.
func TestUnitsWaitForTheStateAndNotForEver(t *testing.T) {
	for unit, lines := range map[string][]string{
		"eipnet.service":         {"RequiresMountsFor=/var/lib/eipnet", "TimeoutStartSec=20"},
		"eipnet-restore.service": {"RequiresMountsFor=/var/lib/eipnet", "TimeoutStartSec=30"},
	} {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if !strings.Contains(string(text), "\n"+line+"\n") {
				t.Errorf("%s lacks %s", unit, line)
			}
		}
	}
}

// script runs one of the package's scripts with programs that only note how they
// were called, and returns those notes.
func script(t *testing.T, name string, booted bool, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	system := filepath.Join(dir, "system")
	if booted {
		mustWrite(t, filepath.Join(system, "marker"), "")
	}
	mustWrite(t, filepath.Join(dir, name), strings.NewReplacer(
		"/run/systemd/system", system, "/var/lib/eipnet", filepath.Join(dir, "state")).Replace(string(text)))
	for _, program := range []string{"systemctl", "eipnet"} {
		mustWrite(t, filepath.Join(dir, "bin", program), "#!/bin/sh\necho "+program+" \"$@\" >>"+filepath.Join(dir, "log")+"\n")
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", append([]string{filepath.Join(dir, name)}, args...)...)
	cmd.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(log)
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}
