// Package packaging_test tests what make installs.
package packaging_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInstall: make install puts just these files below DESTDIR and PREFIX, with
// the units' paths to fit, and make uninstall takes just those away again.
func TestInstall(t *testing.T) {
	bin := build(t)
	for prefix, want := range map[string][]string{
		"/usr/local": installed("usr/local"),
		"/usr":       installed("usr"),
	} {
		dest := t.TempDir()
		neighbour := filepath.Join(dest, prefix, "bin", "neighbour")
		if err := errors.Join(os.MkdirAll(filepath.Dir(neighbour), 0o755), os.WriteFile(neighbour, nil, 0o755)); err != nil {
			t.Fatal(err)
		}
		before := files(t, dest)
		run(t, "make", "install", "BIN="+bin, "DESTDIR="+dest, "PREFIX="+prefix)
		if diff := cmp.Diff(append(before, want...), files(t, dest), sorted); diff != "" {
			t.Errorf("PREFIX=%s: files (-want +got):\n%s", prefix, diff)
		}
		for _, unit := range []string{"eipnet.service serve", "eipnet-restore.service restore"} {
			name, command, _ := strings.Cut(unit, " ")
			text, err := os.ReadFile(filepath.Join(dest, prefix, "lib/systemd/system", name))
			if err != nil {
				t.Fatal(err)
			}
			if line := "\nExecStart=" + prefix + "/bin/eipnet " + command + "\n"; !strings.Contains(string(text), line) {
				t.Errorf("%s does not say %q:\n%s", name, line, text)
			}
		}
		run(t, "make", "uninstall", "DESTDIR="+dest, "PREFIX="+prefix)
		if diff := cmp.Diff(before, files(t, dest)); diff != "" {
			t.Errorf("PREFIX=%s: make uninstall (-before +after):\n%s", prefix, diff)
		}
	}
}

// installed lists what make install puts below a folder, with each file's mode.
func installed(root string) []string {
	return []string{
		"-rwxr-xr-x " + root + "/bin/eipnet",
		"-rw-r--r-- " + root + "/lib/systemd/system/eipnet-restore.service",
		"-rw-r--r-- " + root + "/lib/systemd/system/eipnet.service",
		"-rw-r--r-- " + root + "/share/bash-completion/completions/eipnet",
		"-rw-r--r-- " + root + "/share/fish/vendor_completions.d/eipnet.fish",
		"-rw-r--r-- " + root + "/share/man/man8/eipnet.8.gz",
		"-rw-r--r-- " + root + "/share/zsh/site-functions/_eipnet",
	}
}

var sorted = cmp.Transformer("sorted", func(in []string) map[string]bool {
	out := make(map[string]bool, len(in))
	for _, s := range in {
		out[s] = true
	}
	return out
})

// build makes the binary that make install is given.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "eipnet")
	run(t, "go", "build", "-o", bin, "./cmd/eipnet")
	return bin
}

// run runs a program in the repository's root. Make's settings of a make that
// runs the tests do not count.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...)
	cmd.Dir = ".."
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// files lists the files below a folder, each with its mode.
func files(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() == 0 && filepath.Base(path) != "neighbour" {
			t.Errorf("%s is empty", path)
		}
		rel, err := filepath.Rel(root, path)
		out = append(out, info.Mode().String()+" "+rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
