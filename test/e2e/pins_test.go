package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
	"github.com/eipnet/eipnet/internal/state"
)

const (
	manyPins      = 1000
	rebuildTarget = time.Second
	rebuildLimit  = 10 * rebuildTarget
	idleFor       = 5 * time.Second
	idleLimit     = 5.0 // per cent of a core
)

// TestManyPins has the daemon find 1,000 pinned endpoints, each with a
// published port, in its state file and nothing in the kernel, as after a
// reboot. There is no Docker: what needs no labels is pinned all the same.
func TestManyPins(t *testing.T) {
	ns, dir, bin := netnstest.New(t), t.TempDir(), binary(t)
	run := func(script string) string {
		t.Helper()
		var out []byte
		var err error
		ns.Do(func() { out, err = exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput() })
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	run(`for n in 0 1; do ip link add eth$n type veth peer name far$n; ip link set far$n up; ip link set eth$n up; done
ip addr add 172.31.0.8/20 dev eth0; ip addr add 172.31.0.14/20 dev eth1; ip route add default via 172.31.0.1 dev eth0`)
	storePins(t, filepath.Join(dir, "state.db"))

	file, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	log := func() string {
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	cmd := exec.CommandContext(t.Context(), bin, "serve", "--state-dir", dir, "--plugin-socket", filepath.Join(dir, "eipnet.sock"),
		"--api-socket", filepath.Join(dir, "api.sock"), "--docker-host", "unix://"+filepath.Join(dir, "no-docker.sock"), "--gateway", "eth1=172.31.0.1")
	cmd.Stderr = file
	ns.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log())
		}
	})
	r := &rig{t: t} // to wait with
	status := func() (s api.Status, err error) {
		out, err := exec.CommandContext(t.Context(), bin, "status", "--json", "--api-socket", filepath.Join(dir, "api.sock")).Output()
		if len(out) == 0 {
			return s, err
		}
		return s, json.Unmarshal(out, &s)
	}
	var s api.Status
	r.within(rebuildLimit+patience, "the pins", func() (err error) {
		if s, err = status(); err == nil && len(s.Endpoints) != manyPins {
			err = fmt.Errorf("%d endpoints", len(s.Endpoints))
		}
		return err
	})
	for _, e := range s.Endpoints {
		if e.State != "pinned" || len(e.Ports) != 1 {
			t.Fatalf("endpoint %+v", e)
		}
	}
	var took []string
	r.eventually("the log to tell of the first pass", func() (err error) {
		if took = regexp.MustCompile(`msg="host changed".* endpoints=1000.* took=(\S+)`).FindStringSubmatch(log()); took == nil {
			err = errors.New(log())
		}
		return err
	})
	rebuild, err := time.ParseDuration(took[1])
	if err != nil {
		t.Fatal(err)
	}
	r.report("full rebuild of 1,000 pins", rebuild.Round(time.Millisecond).String(), rebuildTarget.String())
	if rebuild > rebuildLimit {
		t.Errorf("a full rebuild took %v", rebuild)
	}
	if n := strings.Count(run("nft list map inet eipnet snat4"), " : 172.31.0."); n != manyPins {
		t.Errorf("the kernel has %d pins", n)
	}

	r.eventually("a second without a pass", func() error {
		before, err := status()
		<-time.After(time.Second)
		now, again := status()
		if err = errors.Join(err, again); err == nil && !now.Pass.At.Equal(before.Pass.At) {
			err = fmt.Errorf("one ended at %v", now.Pass.At)
		}
		return err
	})
	idle(t, r, cmd.Process.Pid)
	said, before := len(log()), time.Now()
	run("ip addr add 192.0.2.1/32 dev lo") // something happens that is nobody's business
	r.eventually("another pass", func() error {
		if s, err = status(); err == nil && !s.Pass.At.After(before) {
			err = errors.New("the last one was before")
		}
		return err
	})
	if s.Pass.Changed || strings.Contains(log()[said:], "host changed") {
		t.Errorf("the second pass wrote something:\n%s", log()[said:])
	}
	r.report("pass over 1,000 pins that finds nothing to change", fmt.Sprintf("%.0f ms", s.Pass.TookMS), "")
}

// storePins writes a state file with one network and its pinned endpoints.
func storePins(t *testing.T, path string) {
	t.Helper()
	store, _, err := state.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	errs := []error{store.PutNetwork(model.Network{
		ID: strings.Repeat("a", 64), Bridge: bridge, Subnet4: netip.MustParsePrefix(subnet), Gateway4: netip.MustParseAddr("172.19.0.1"),
	})}
	for i := range manyPins {
		id := fmt.Sprintf("%011d%s", i, strings.Repeat("e", 53))
		errs = append(errs, store.PutEndpoint(model.Endpoint{
			ID: id, NetworkID: strings.Repeat("a", 64), Addr4: netip.AddrFrom4([4]byte{172, 19, byte(1 + i/250), byte(1 + i%250)}),
			MAC: fmt.Sprintf("02:42:ac:13:%02x:%02x", 1+i/250, 1+i%250), Veth: "eipv" + id[:11], Phase: model.Joined,
			Options:   map[string]string{"eip.nic": fmt.Sprintf("eth%d", i%2)},
			Publishes: []model.Publish{{Proto: model.TCP, HostPort: uint16(20000 + i), Port: 8080}},
		}))
	}
	if err := errors.Join(append(errs, store.Close())...); err != nil {
		t.Fatal(err)
	}
}

// idle tells what the daemon costs while nothing happens.
func idle(t *testing.T, r *rig, pid int) {
	t.Helper()
	share := 100.0
	for range 3 { // Docker may be looked for in one of them
		begin := cpuTime(t, pid)
		select {
		case <-t.Context().Done():
		case <-time.After(idleFor):
		}
		if share = min(share, 100*float64(cpuTime(t, pid)-begin)/float64(idleFor)); share < idleLimit/2 {
			break
		}
	}
	r.report("CPU of an idle daemon with 1,000 pins", fmt.Sprintf("%.2f %%", share), "0 %")
	if share > idleLimit {
		t.Errorf("an idle daemon takes %.1f %% of a core", share)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	rss := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	kb, err := strconv.Atoi(string(bytes.Join(rss[1:], nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.report("memory of a daemon with 1,000 pins (RSS)", fmt.Sprintf("%d MiB", kb>>10), "")
}

// cpuTime is what the process has used so far.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	ticks := 0
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ
	return time.Duration(ticks) * time.Second / perSecond
}
