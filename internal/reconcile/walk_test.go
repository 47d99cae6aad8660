package reconcile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/reconcile"
)

// The walk's size: steps between two looks at everything, and walks of so many
// steps in make unit and make soak. EIPNET_SEED repeats one walk.
const (
	stepsToQuiet = 10
	stepsOfWalk  = 250
	unitWalks    = 8
	soakWalks    = 400
)

// TestWalk does anything that can happen to a host, in any order, from a
// printed seed. After every step no packet leaves by a wrong NIC. After every
// few of them everything that is away comes back, and then the kernel holds
// just what is asked for, and a pass writes nothing. At the end all is removed,
// and nothing of ours is left.
func TestWalk(t *testing.T) {
	first, walks := uint64(1), unitWalks
	if os.Getenv("EIPNET_SOAK") != "" {
		first, walks = uint64(time.Now().UnixNano()), soakWalks
	}
	if seed := os.Getenv("EIPNET_SEED"); seed != "" {
		n, err := strconv.ParseUint(seed, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, walks = n, 1
	}
	for i := range walks {
		walk(t, first+uint64(i))
		if t.Failed() {
			return
		}
	}
	t.Logf("%d steps, from seed %d on", walks*stepsOfWalk, first)
}

func walk(t *testing.T, seed uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &walker{sim: newSim(t, seed), rng: rand.New(rand.NewPCG(seed, 0)), said: make(map[string][]string)}
		defer func() {
			if t.Failed() {
				t.Logf("EIPNET_SEED=%d; the last steps:", seed)
				for _, s := range w.log[max(0, len(w.log)-3*stepsToQuiet):] {
					t.Log(s)
				}
			}
			w.stop(true)
		}()
		w.engine.moves = w.remember
		w.pristine = maps.Clone(w.kernel.sysctls)
		w.start(0)
		for i := range stepsOfWalk {
			w.step()
			w.packets()
			if i%stepsToQuiet == stepsToQuiet-1 {
				w.settle()
				w.check()
			}
			if t.Failed() {
				return
			}
		}
		w.removeAll()
		w.settle()
		w.check()
		w.nothingLeft()
	})
}

// walker goes through a sim.
type walker struct {
	*sim
	rng      *rand.Rand
	log      []string
	pristine map[string]string   // switches before eipnet came
	broken   [2]bool             // locks that others undid since the last settle
	said     map[string][]string // container → NICs that it may leave by since the last settle
}

// op is something that can happen. It returns false if it cannot happen now.
type op struct {
	name   string
	weight int
	do     func(*walker) (what string, done bool)
}

func (w *walker) step() {
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	for {
		n := w.rng.IntN(total)
		i := slices.IndexFunc(ops, func(o op) bool { n -= o.weight; return n < 0 })
		what, done := ops[i].do(w)
		if !done {
			continue
		}
		w.log = append(w.log, ops[i].name+" "+what)
		// Mostly the next thing happens at once, in the middle of a pass.
		if w.rng.IntN(3) == 0 {
			wait(time.Duration(w.rng.IntN(200)) * time.Millisecond)
		}
		return
	}
}

func pick[T any](w *walker, from []T) (v T, ok bool) {
	if len(from) == 0 {
		return v, false
	}
	return from[w.rng.IntN(len(from))], true
}

// container picks one that runs, or one that does not.
func (w *walker) container(running bool) (*dockerContainer, bool) {
	return pick(w, w.containersThat(func(c *dockerContainer) bool { return c.running == running }))
}

func (w *walker) containersThat(fits func(*dockerContainer) bool) (out []*dockerContainer) {
	for _, name := range sorted(w.engine.containers) {
		if c := w.engine.containers[name]; fits(c) {
			out = append(out, c)
		}
	}
	return out
}

// settle ends all faults and brings back whoever is away, and waits for as long
// as any repair may take without a sweep.
func (w *walker) settle() {
	w.do(func() {
		w.faults = faults{}
		w.engine.up, w.engine.mute = true, false
	})
	if !w.alive() {
		w.stop(true)
		w.start(0)
	}
	w.engine.tell()
	w.poke()
	wait(2 * reconcile.RetryInterval)
	w.collect()
	wait(3 * reconcile.RetryInterval)
	synctest.Wait()
	w.log = append(w.log, "-- settled")
	w.broken = [2]bool{}
}

// collect is what the daemon does about things that Docker has forgotten.
func (w *walker) collect() {
	known := make(map[string]bool)
	w.do(func() {
		for _, n := range w.engine.networks {
			known[n.id] = true
		}
		for _, c := range w.engine.containers {
			known[c.id] = true
			for _, a := range c.at {
				known[a.endpoint] = true
			}
		}
	})
	store := simStore{w.daemon}
	for _, r := range store.Rebinds() {
		if !known[r.ContainerID] {
			_ = store.DeleteRebind(r.ContainerID)
		}
	}
	alive := func(id string) bool { return known[id] }
	w.daemon.driver.Sweep(w.t.Context(), alive, func(id string) bool {
		n, _ := store.Network(id)
		return n.Stock || known[id]
	})
}

func (w *walker) removeAll() {
	if !w.alive() {
		w.stop(true)
		w.start(0)
	}
	w.do(func() { w.faults, w.engine.up, w.engine.mute = faults{}, true, false })
	for _, name := range sorted(w.engine.containers) {
		w.engine.end(w.engine.containers[name], true)
		w.do(func() { delete(w.engine.containers, name) })
	}
	for _, name := range sorted(w.engine.networks) {
		w.engine.removeNetwork(name)
	}
	w.engine.tell()
	w.log = append(w.log, "removed all")
}

// remember lets what a container may do now count until all is quiet.
func (w *walker) remember(c *dockerContainer) { w.said[c.id] = append(w.said[c.id], w.ways(c)...) }

// parallel runs some things at once.
func parallel(fns ...func()) {
	var g sync.WaitGroup
	for _, fn := range fns {
		g.Go(fn)
	}
	g.Wait()
}

func describe(c *dockerContainer) string {
	return fmt.Sprintf("%s %v on %v ports %v", c.name, c.labels, c.networks, c.ports)
}
