package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary bring up a lab, say what it holds, and wait to be killed.
const childEnv = "EIPNET_LAB_TEST_CHILD"

// holding is what a child says of its lab.
type holding struct {
	Dir    string
	Cgroup string
	NetNS  []string // as links in /proc/PID/fd and /proc/PID/ns say
	PIDs   []int
}

func holdForParent() int {
	l, err := New(context.Background(), Config{Engine: testEngine()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	h, err := holdingOf(l)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(h)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {} // until it is killed: nothing is cleaned up
}

func holdingOf(l *Lab) (holding, error) {
	h := holding{Dir: l.Dir(), Cgroup: l.cgroup(), PIDs: []int{l.Host.PID()}}
	if l.Engine() != nil {
		h.PIDs = append(h.PIDs, l.Engine().PID())
	}
	for _, ns := range []*netNS{l.Site.ns, l.fabric, l.Host.ns} {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ns.fd()))
		if err != nil {
			return h, err
		}
		h.NetNS = append(h.NetNS, link)
	}
	return h, nil
}

// held lists those of the network namespaces that a process of the machine still is in or has open.
func held(t *testing.T, want []string) []string {
	t.Helper()
	found := map[string]bool{}
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if link, err := os.Readlink(path); err == nil && slices.Contains(want, link) {
				found[link] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// alone gives the test a folder for its labs that no other process shares: other
// labs sweep dead ones, and come and go while a test counts them.
func alone(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "labs-*") //nolint:usetesting // its paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", dir)
}

// eventually polls until ok says yes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("still not so: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// gone checks that nothing of a lab is left but, after a kill, files.
func gone(t *testing.T, h holding) {
	t.Helper()
	for _, pid := range h.PIDs {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool {
			// A PID that somebody else got since then is not in the lab's namespaces.
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
			return err != nil || !slices.Contains(h.NetNS, link)
		})
	}
	eventually(t, "the lab's namespaces are gone", func() bool { return len(held(t, h.NetNS)) == 0 })
	mounts, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range mounts {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), filepath.Base(h.Dir)) {
			t.Errorf("%s still mentions %s", path, h.Dir)
		}
	}
}

func cgroupsOf(t *testing.T, name string) []string {
	t.Helper()
	roots, err := cgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, root := range roots {
		if exists(filepath.Join(root, name)) {
			found = append(found, filepath.Join(root, name))
		}
	}
	return found
}

func TestCloseLeavesNothing(t *testing.T) {
	// A first lab takes what is only made once: the engine's root, and the machine's conntrack.
	first := Start(t, Config{Engine: testEngine()})
	before, err := MachineState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"one":     {Engine: testEngine()},
		"three":   {Engine: testEngine(), Shape: ThreeSubnets},
		"unified": {Engine: testEngine(), Unified: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := Start(t, cfg)
			if err := l.BuildImage(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Docker(t.Context(), "run", "-d", "-p", "8090:8080", Image); err != nil {
				t.Fatal(err)
			}
			if v, err := l.Docker(t.Context(), "info", "--format", "{{.CgroupVersion}}"); err != nil || cfg.Unified && v != "2" {
				t.Errorf("version of cgroups %q, %v", v, err)
			}
			if len(cgroupsOf(t, l.cgroup())) == 0 {
				t.Error("the container has no cgroup below the lab's: nothing would be proved")
			}
			h, err := holdingOf(l)
			if err != nil {
				t.Fatal(err)
			}
			if got := held(t, h.NetNS); len(got) != len(h.NetNS) {
				t.Errorf("of the namespaces %v only %v were found: nothing would be proved", h.NetNS, got)
			}
			for range 2 {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			gone(t, h)
			if exists(h.Dir) {
				t.Errorf("folder %s is still there", h.Dir)
			}
			if left := cgroupsOf(t, h.Cgroup); len(left) > 0 {
				t.Errorf("cgroups %v are still there", left)
			}
		})
	}
	MachineAsBefore(t, before)
	// The other labs have come and gone: this one still works.
	if err := first.Prove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	a, b := Start(t, Config{}), Start(t, Config{})
	for _, l := range []*Lab{a, b} {
		got, err := l.HostGet(t.Context(), l.Addr("eth0"), "http://"+SiteAddr.String()+"/ip")
		if err != nil || got != l.EIP("eth0").String() {
			t.Errorf("the site sees %q, %v: want %s", got, err, l.EIP("eth0"))
		}
		if n := l.Site.Count(func(s Seen) bool { return s.Proto == "http" }); n != 1 {
			t.Errorf("the site saw %d requests, %v: want its own lab's only", n, l.Site.Seen())
		}
	}
}

func TestKilledLabLeavesNothingRunning(t *testing.T) {
	alone(t)
	Start(t, Config{Engine: testEngine()}) // skips where a lab cannot run
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, "/proc/self/exe")
	child.Env = append(os.Environ(), childEnv+"=1")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child said nothing: %v, %v", err, child.Wait())
	}
	var h holding
	if err := json.Unmarshal([]byte(line), &h); err != nil {
		t.Fatal(err)
	}
	if got := held(t, h.NetNS); len(got) != len(h.NetNS) {
		t.Errorf("of the namespaces %v only %v were found: nothing would be proved", h.NetNS, got)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	if err := child.Wait(); err == nil {
		t.Error("the child ended by itself")
	}
	gone(t, h)
	if !exists(filepath.Join(h.Dir, lockName)) {
		t.Errorf("the killed lab's folder %s is gone already: nothing is left to sweep", h.Dir)
	}
	Start(t, Config{})
	if exists(h.Dir) {
		t.Errorf("the next lab has not removed the killed lab's folder %s", h.Dir)
	}
	if left := cgroupsOf(t, h.Cgroup); len(left) > 0 {
		t.Errorf("the next lab has not removed the killed lab's cgroups %v", left)
	}
}

func TestFailedStartIsUndone(t *testing.T) {
	if why := missing(Config{}); why != "" || testing.Short() {
		t.Skip(why)
	}
	alone(t)
	labs := func() []string {
		dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern))
		if err != nil {
			t.Fatal(err)
		}
		return dirs
	}
	before := labs()
	if _, err := New(t.Context(), Config{Engine: testEngine(), DockerdArgs: []string{"--log-level", "shouting"}}); err == nil || !strings.Contains(err.Error(), "shouting") {
		t.Errorf("error %v: want the engine's own words", err)
	}
	if diff := cmp.Diff(before, labs()); diff != "" {
		t.Errorf("labs' folders (-before +after):\n%s", diff)
	}
	for _, cfg := range []Config{{Engine: "1.0"}, {RPFilter: "3"}} {
		if _, err := New(t.Context(), cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestHostCommands(t *testing.T) {
	l := Start(t, Config{})
	ctx := t.Context()
	if _, err := l.Host.Run(ctx, "sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v: want the program's own words", err)
	}
	// A cancelled command's program ends, not only nsenter in front of it.
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	const seconds = "86399"
	if _, err := l.Host.Run(short, "sleep", seconds); err == nil {
		t.Error("sleep ended early")
	}
	running := func() bool {
		_, err := l.Host.Run(ctx, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep 'sleep "+seconds[:4]+"[9]'")
		return err == nil
	}
	eventually(t, "the cancelled program is gone", func() bool { return !running() })
	testSignals(t, l)
	// What the host writes stays in the lab.
	if _, err := l.Host.Run(ctx, "sh", "-c", "mkdir -p /etc/eipnet /var/lib/eipnet /run/eipnet && touch /etc/eipnet/x /var/lib/eipnet/x /run/eipnet/x"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/eipnet/x", "/var/lib/eipnet/x", "/run/eipnet/x"} {
		if _, err := os.Stat(l.Host.Path(path)); err != nil {
			t.Errorf("the host's file is not to be found: %v", err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the host wrote the machine's %s (%v)", path, err)
		}
	}
	tool := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho installed\n"), fs.FileMode(0o600)); err != nil {
		t.Fatal(err)
	}
	if err := l.Host.Install(tool, "lab-tool"); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Host.Run(ctx, "lab-tool"); err != nil || out != "installed\n" {
		t.Errorf("the installed program says %q, %v", out, err)
	}
}

func testSignals(t *testing.T, l *Lab) {
	t.Helper()
	p, err := l.Host.Start("sh", "-c", `trap 'echo hup' HUP; trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.02; done`)
	if err != nil {
		t.Fatal(err)
	}
	says := func(word string) {
		t.Helper()
		eventually(t, "the log has "+word, func() bool { return strings.Contains(p.Log(), word) })
	}
	says("ready")
	if err := p.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	says("hup")
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		return err == nil && strings.Contains(string(status), "State:\tT")
	}
	eventually(t, "the program is stopped", stopped)
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program goes on", func() bool { return !stopped() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Stop(ctx, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if p.Err() == nil || !strings.Contains(p.Err().Error(), "exit status 4") {
		t.Errorf("it ended with %v: want exit status 4", p.Err())
	}
	says("term")
}
