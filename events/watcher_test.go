package events

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
)

// network, container and endpoint ids of the tests.
const (
	net1 = "1111111111111111111111111111111111111111111111111111111111111111"
	net2 = "2222222222222222222222222222222222222222222222222222222222222222"
	con1 = "aaaa111111111111111111111111111111111111111111111111111111111111"
	con2 = "bbbb222222222222222222222222222222222222222222222222222222222222"
	end1 = "eeee111111111111111111111111111111111111111111111111111111111111"
	end2 = "eeee222222222222222222222222222222222222222222222222222222222222"
)

var netips = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

var pinned = map[string]string{"eip.nic": "eth1"}

func TestFullList(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "mine", "Driver": "eipnet:latest", "Labels": object{"eip.nic": "eth1", "other": "x"}})
	d.addNetwork(net2, object{"Name": "stock", "Driver": "bridge"})
	d.addNetwork("default", object{"Name": "bridge", "Driver": "bridge", "Options": object{"com.docker.network.bridge.default_bridge": "true"}})
	d.addNetwork("named", object{"Name": "named", "Driver": "bridge", "Options": object{"com.docker.network.bridge.name": "br_mine"}})
	d.addNetwork("host", object{"Name": "host", "Driver": "host"})
	d.addContainer(con1, "running", map[string]string{"eip.nic": "eth1", "com.example": "x"})
	d.addContainer(con2, "starting", nil)
	d.attach(net1, con1, end1, "running")
	d.attach(net1, "ep-"+end2, end2, "starting")
	d.attach(net2, con1, "end3", "running")
	d.attach(net2, "ep-end4", "end4", "gateway_123456789abc")
	w := run(t, d.host())
	w.untilUp()
	got := w.View()
	running := model.Container{Known: true, ID: con1, Name: "running", Labels: pinned}
	want := &View{
		At: got.At,
		Containers: map[string]model.Container{
			end1:   running,
			end2:   {Known: true, ID: con2, Name: "starting"},
			"end3": running,
			"end4": {Name: "gateway_123456789abc"},
		},
		Ours: map[string]string{end1: net1},
		Networks: map[string]Network{
			net1:      {ID: net1, Name: "mine", Driver: "eipnet:latest", Labels: pinned},
			net2:      {ID: net2, Name: "stock", Driver: "bridge", Bridge: "br-222222222222"},
			"default": {ID: "default", Name: "bridge", Driver: "bridge", Bridge: "docker0"},
			"named":   {ID: "named", Name: "named", Driver: "bridge", Bridge: "br_mine"},
			"host":    {ID: "host", Name: "host", Driver: "host"},
		},
		Stock: []model.Network{
			{ID: net2, Name: "stock", Stock: true, Bridge: "br-222222222222"},
			{ID: "default", Name: "bridge", Stock: true, Bridge: "docker0"},
			{ID: "named", Name: "named", Stock: true, Bridge: "br_mine"},
		},
		Endpoints: []model.Endpoint{
			{ID: "end3", NetworkID: net2, Addr4: netip.MustParseAddr("172.19.0.2"), Phase: model.Joined, Container: running},
			{ID: "end4", NetworkID: net2, Addr4: netip.MustParseAddr("172.19.0.2"), Phase: model.Joined, Container: model.Container{Name: "gateway_123456789abc"}},
		},
		Exists:        map[string]bool{con1: true, con2: true},
		EngineVersion: "28.5.2",
	}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if p := w.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
	if d.count("/networks/host") > 0 {
		t.Error("asked for the host network's endpoints")
	}
}

func TestOneNetworkFails(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "good", "Driver": "bridge"})
	d.addNetwork(net2, object{"Name": "bad", "Driver": "foreign"})
	d.addContainer(con1, "c", nil)
	d.attach(net1, con1, end1, "c")
	d.change(func() { d.failing["/networks/"+net2] = 500 })
	w := run(t, d.host())
	w.untilUp()
	v := w.View()
	if !v.Networks[net2].Unlisted || v.Networks[net1].Unlisted || !v.Containers[end1].Known {
		t.Errorf("view %+v", v)
	}
	d.change(func() { d.failing["/networks/"+net2] = 404 }) // removed between the two questions
	d.emit("network", "destroy", net2, nil)
	w.until("network gone", func() bool { _, there := w.View().Networks[net2]; return !there })
}

func TestEventFilters(t *testing.T) {
	d := newDocker(t)
	w := run(t, d.host())
	w.untilUp()
	d.change(func() {
		for _, r := range d.requests {
			if strings.Contains(r, "/events") && (!strings.Contains(r, "connect") || !strings.Contains(r, "since=")) {
				t.Errorf("request %s", r)
			}
		}
	})
	for _, action := range []string{"exec_create: /bin/true", "health_status: healthy", "exec_die"} {
		d.emit("container", action, con1, nil)
	}
	lists := d.count("GET /networks?")
	d.emit("network", "create", net1, nil) // comes after them
	w.until("a list", func() bool { return d.count("GET /networks?") > lists })
	if _, there := w.cache.id(con1); there {
		t.Error("a health event reached the cache")
	}
}

// TestStreamBreaks replaces the engine: everything is asked anew, and what
// happened in between is seen.
func TestStreamBreaks(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	d.stop()
	w.until("down", func() bool { return !w.Up() })
	if p := w.Problems(); len(p) != 1 || p[0].Code != model.CodeDockerAway {
		t.Errorf("problems %v", p)
	}
	if _, err := w.Container(t.Context(), net1, end1); !errors.Is(err, ErrDown) {
		t.Errorf("error %v", err)
	}
	if w.View() == nil {
		t.Error("the last view is gone")
	}
	d.version, d.api = "26.1.5", "1.45"
	d.addContainer(con1, "new", pinned)
	d.attach(net1, con1, end1, "new")
	d.start()
	w.untilUp()
	if v := w.View(); v.EngineVersion != "26.1.5" || v.Containers[end1].Name != "new" {
		t.Errorf("view %+v", v)
	}
	if p := w.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
}

// TestSilentAtBoot is dockerd while it starts: it accepts and does not answer.
func TestSilentAtBoot(t *testing.T) {
	d := newDocker(t)
	d.hush()
	w := run(t, d.host())
	w.until("first question", func() bool {
		if d.count("HEAD /_ping") > 0 {
			return true
		}
		runtime.Gosched()
		w.poke()
		return false
	})
	took := fastest(5, func() {
		if _, err := w.Container(t.Context(), net1, end1); !errors.Is(err, ErrDown) {
			t.Errorf("error %v", err)
		}
	})
	if took > 100*time.Millisecond {
		t.Errorf("took %v", took)
	}
	if w.Up() || w.View() != nil || len(w.Problems()) != 1 {
		t.Errorf("up %v, view %v, problems %v", w.Up(), w.View(), w.Problems())
	}
	d.answer()
	w.untilUp()
}

// TestSilentLater is an engine that hangs after it was up.
func TestSilentLater(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	d.hush()
	took := fastest(3, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := w.Container(ctx, net1, end1)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknown) {
			t.Errorf("error %v", err)
		}
	})
	if took > 500*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

// fastest is the shortest time that do takes in n tries: others use the machine, too.
func fastest(n int, do func()) time.Duration {
	best := time.Duration(math.MaxInt64)
	for range n {
		start := time.Now()
		do()
		best = min(best, time.Since(start))
	}
	return best
}

// TestCoalescing: ten thousand events make few lists, and the last one is not lost.
func TestCoalescing(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	before, start := d.count("GET /networks?"), time.Now()
	for i := range 10_000 {
		d.emit("container", "die", strconv.Itoa(i), map[string]string{"name": fmt.Sprint("c", i)})
	}
	d.addNetwork(net2, object{"Name": "last", "Driver": "bridge"})
	d.emit("network", "create", net2, nil)
	w.until("last network", func() bool { return w.View().Networks[net2].Name == "last" })
	limit := 3 + int(time.Since(start)/listInterval)
	if n := d.count("GET /networks?") - before; n > limit {
		t.Errorf("%d lists in %v, want %d at most", n, time.Since(start), limit)
	}
}

func TestNothingLeftRunning(t *testing.T) {
	d := newDocker(t)
	before := runtime.NumGoroutine()
	w := run(t, d.host())
	w.untilUp()
	w.stop()
	d.http.CloseClientConnections()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if runtime.NumGoroutine() <= before {
			return
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("goroutines left:\n%s", stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestRemoteHost(t *testing.T) {
	if err := New(Options{Host: "tcp://127.0.0.1:2375"}).Run(t.Context()); err == nil {
		t.Error("followed a remote docker")
	}
}

func TestProblems(t *testing.T) {
	for _, test := range []struct {
		name string
		id   identity
		want []model.Code
	}{
		{"good", identity{version: "28.5.2", api: "1.51", security: []string{"name=seccomp,profile=builtin"}}, nil},
		{"rootless", identity{security: []string{"name=seccomp", "name=rootless"}}, []model.Code{CodeEngineUnsupported}},
		{"userns", identity{security: []string{"name=userns"}}, []model.Code{CodeEngineUnsupported}},
		{"desktop", identity{platform: "Docker Desktop 4.30"}, []model.Code{CodeEngineUnsupported}},
		{"podman", identity{platform: "Fedora · Podman Engine"}, []model.Code{CodeEngineUnsupported}},
		{"29.0.0", identity{version: "29.0.0", api: "1.52"}, []model.Code{CodeEngineBroken}},
		{"29.0.2", identity{version: "29.0.2+debian", api: "1.52"}, []model.Code{CodeEngineBroken}},
		{"29.0.0-rc.1", identity{version: "29.0.0-rc.1", api: "1.52"}, []model.Code{CodeEngineBroken}},
		{"29.0.3", identity{version: "29.0.3", api: "1.52"}, nil},
		{"development", identity{version: "29.0.0-dev", api: "1.56"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []model.Code
			for _, p := range judge(test.id, "h") {
				got = append(got, p.Code)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestUnsupportedEngine is not followed, until another one answers.
func TestUnsupportedEngine(t *testing.T) {
	d := newDocker(t)
	d.security = []string{"name=rootless"}
	w := run(t, d.host())
	w.until("refused", func() bool { p := w.Problems(); return len(p) == 1 && unsupported(p[0]) })
	if w.Up() || d.count("/events") > 0 {
		t.Error("followed")
	}
	d.change(func() { d.security = nil })
	w.untilUp()
}

func TestBrokenEngine(t *testing.T) {
	d := newDocker(t)
	d.version, d.api = "29.0.1", "1.52"
	w := run(t, d.host())
	w.untilUp()
	if p := w.Problems(); len(p) != 1 || p[0].Code != CodeEngineBroken {
		t.Errorf("problems %v", p)
	}
}

// TestRefresh: a list is made though nothing happened.
func TestRefresh(t *testing.T) {
	d := newDocker(t)
	w := run(t, d.host())
	w.Refresh() // nobody listens yet
	w.untilUp()
	at := w.View().At
	w.Refresh()
	w.until("another list", func() bool { return w.View().At.After(at) })
}
