package reconcile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// TestCrashPoints has the daemon die after its first write to disk or kernel,
// then after its second, and so on through a life in which everything happens
// that it writes for, and once more while it recovers. Started again, it
// converges: no packet leaves by a wrong NIC meanwhile, the kernel holds just
// what is asked for, and when all is removed nothing is left.
func TestCrashPoints(t *testing.T) {
	n, stride := 1, 1
	if testing.Short() {
		stride = 9 // each of them in make soak
	}
	for ; crash(t, n); n += stride {
		if t.Failed() {
			t.Fatalf("it died after write %d", n)
		}
	}
	if t.Failed() {
		t.Fatal("though it did not die")
	}
	if n < 100 {
		t.Errorf("only %d writes in that life", n)
	}
	t.Logf("died after write 1 to %d, one of %d", n-stride, stride)
}

// crash goes through a life in which the daemon dies after n writes. It
// reports whether there were as many.
func crash(t *testing.T, n int) (died bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &walker{sim: newSim(t, 1), rng: rand.New(rand.NewPCG(1, 0)), said: make(map[string][]string)}
		defer func() { w.stop(true) }()
		w.engine.moves = w.remember
		w.pristine = maps.Clone(w.kernel.sysctls)
		w.start(n)
		life := life()
		again := func() bool {
			if w.alive() {
				return false
			}
			w.stop(true)
			dies := 0
			if w.deaths == 1 {
				dies = 1 + n%5 // once more as it recovers
			}
			w.start(dies)
			wait(time.Second)
			if w.alive() {
				w.collect() // before anybody tries again; it may die of that
			}
			return true
		}
		for _, act := range life {
			for tries := 1; ; tries++ {
				err := act.do(w)
				w.packets()
				wait(100 * time.Millisecond)
				w.packets()
				if !again() && err == nil {
					break
				}
				if tries == 5 {
					t.Fatalf("%s: %v", act.name, err)
				}
			}
		}
		again()
		w.settleAlive()
		w.check()
		w.removeAll()
		w.settleAlive()
		w.check()
		w.nothingLeft()
		died = w.deaths > 0
	})
	return died
}

// settleAlive settles once more if the daemon dies of it.
func (w *walker) settleAlive() {
	w.settle()
	if !w.alive() {
		w.settle()
	}
}

// act is a thing that is done once more where it failed as the daemon had died.
type act struct {
	name string
	do   func(*walker) error
}

// life is what a daemon may have to write for.
func life() []act {
	return []act{
		network("net0", true, nil),
		network("net1", true, map[string]string{"eip.nic": "eth1"}),
		network("net2", false, map[string]string{"eip.nic": "eth2"}),
		run("app0", map[string]string{"eip.nic": "eth1"}, portSets[2], "net0"),
		run("app1", map[string]string{"eip.nic": "eth1", "eip.fallback": "eth2"}, portSets[3], "net0", "net1"),
		run("app2", nil, nil, "net1", "net0"),
		run("app3", nil, nil, "net2"),
		run("app4", nil, []model.Publish{{Proto: model.UDP, HostPort: 54, Port: 54}}, "net0"),
		{"rebind", func(w *walker) error { return w.move("app0", map[string]string{"eip.nic": "eth2"}) }},
		happens("eth1 down", func(w *walker) { w.kernel.links["eth1"].up = false; w.kernel.unroute("eth1") }),
		happens("eth1 up", func(w *walker) { w.kernel.links["eth1"].up = true }),
		happens("address changed", func(w *walker) {
			w.kernel.links["eth1"].addrs = []netip.Prefix{netip.MustParsePrefix("172.31.0.15/20")}
		}),
		happens("eth2 unplugged", func(w *walker) { w.kernel.remove("eth2") }),
		happens("eth2 plugged", func(w *walker) {
			w.kernel.plug("eth2", netip.MustParsePrefix("10.9.0.21/24"), netip.MustParseAddr("10.9.0.1"))
		}),
		happens("bridge deleted", func(w *walker) { w.kernel.remove("net0") }),
		happens("rules flushed", func(w *walker) { clear(w.kernel.rules) }),
		happens("ruleset flushed", func(w *walker) { w.kernel.table, w.kernel.spoof = nil, nil; w.tellTables() }),
		{"docker restart", func(w *walker) error {
			c := w.engine.containers["app1"]
			w.engine.end(c, true)
			return w.engine.begin(c)
		}},
		{"rebind --clear", func(w *walker) error { return w.move("app0", nil) }},
		{"docker rm", func(w *walker) error {
			if c := w.engine.containers["app0"]; c != nil {
				w.engine.end(c, true)
				w.do(func() { delete(w.engine.containers, "app0") })
			}
			return nil
		}},
	}
}

func network(name string, ours bool, options map[string]string) act {
	return act{"network create " + name, func(w *walker) error {
		if w.engine.networks[name] != nil {
			return nil
		}
		subnet := netip.MustParsePrefix(fmt.Sprintf("172.2%s.0.0/16", name[3:]))
		return w.engine.createNetwork(name, ours, subnet, options)
	}}
}

func run(name string, labels map[string]string, ports []model.Publish, networks ...string) act {
	return act{"docker run " + name, func(w *walker) error {
		c := w.engine.containers[name]
		if c == nil {
			c = &dockerContainer{name: name, labels: labels, ports: ports, networks: networks}
			w.do(func() { c.id, w.engine.containers[name] = w.engine.id("c"), c })
		}
		if c.running {
			return nil
		}
		return w.engine.begin(c)
	}}
}

func happens(name string, fn func(*walker)) act {
	done := false
	return act{name, func(w *walker) error {
		if !done {
			done = true
			w.change(func() { fn(w) })
		}
		return nil
	}}
}

// move is eipnet rebind of a container that may be there.
func (w *walker) move(name string, options map[string]string) error {
	if w.engine.containers[name] == nil || !w.alive() {
		return errRefused
	}
	w.expectMove(w.engine.containers[name], options)
	_, err := w.daemon.loop.Rebind(w.t.Context(), name, options)
	return err
}
