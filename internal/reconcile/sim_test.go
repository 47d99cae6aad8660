package reconcile_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// sim is a host with several NICs, a Docker Engine, a disk, and an eipnet whose
// loop and driver are the real ones. Kernel, engine and disk outlive the daemon.
// It lives in a synctest bubble: calls take time there, so that things happen
// in the middle of a pass, and waiting costs nothing.
type sim struct {
	t *testing.T

	mu     sync.Mutex
	lag    *rand.Rand
	kernel *kernel
	engine *engine
	disk   *disk
	daemon *daemon
	faults faults
	lost   bool     // Docker has things of ours that the disk lacked
	fresh  bool     // the next daemon finds that the disk was lost
	deaths int      // of daemons that wrote as much as they should
	wrote  []string // by daemons, to kernel and disk
}

// faults are what goes wrong until somebody mends it.
type faults struct {
	table, disk, links bool
}

var (
	errDead  = errors.New("the daemon is dead")
	errFault = errors.New("fault")
	errLink  = errors.New("the route's device is missing or down")
)

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{t: t, lag: rand.New(rand.NewPCG(seed, 1)), kernel: newKernel(), disk: newDisk()}
	s.engine = &engine{sim: s, up: true, random: seed%2 == 0, networks: make(map[string]*dockerNetwork), containers: make(map[string]*dockerContainer), freed: make(map[netip.Addr]time.Time)}
	return s
}

// do looks at or changes the world with nobody in between.
func (s *sim) do(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

// pause lets a call take its time, up to two milliseconds.
func (s *sim) pause() {
	var d time.Duration
	s.do(func() { d = time.Duration(s.lag.IntN(2000)) * time.Microsecond })
	wait(d)
}

// wait lets time pass in the bubble.
func wait(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // synctest's clock
}

// daemon is one run of eipnet, from start to death: a dead one changes nothing.
type daemon struct {
	*sim
	loop    *reconcile.Loop
	driver  *driver.Driver
	handler http.Handler
	end     func() // cancels and waits

	dead  bool
	left  int // writes until it dies; 0: it lives on
	view  *reconcile.DockerView
	news  chan struct{} // Docker has something to tell
	ports map[plan.Port]bool
}

// write changes kernel or disk, unless the daemon is dead. It may die of it.
// The sim is locked.
func (d *daemon) write(what string, fn func()) error {
	if d.dead {
		return errDead
	}
	fn()
	d.wrote = append(d.wrote, what)
	if !strings.HasPrefix(what, "disk") && !strings.HasPrefix(what, "table") {
		d.loop.Poke() // rtnetlink tells of one's own doings, too
	}
	if d.left > 0 {
		if d.left--; d.left == 0 {
			d.dead = true
			d.deaths++
		}
	}
	return nil
}

// start starts eipnet, which dies after so many writes if that is not zero.
func (s *sim) start(dies int) {
	d := &daemon{sim: s, left: dies, news: make(chan struct{}, 1), ports: make(map[plan.Port]bool)}
	loop, err := reconcile.New(reconcile.Options{
		Log: slog.New(slog.DiscardHandler), Settings: plan.Settings{Mask: model.DefaultMask},
		Host: simHost{d}, Router: simRouter{d}, Firewall: simFirewall{d}, Forwarding: simForwarding{d},
		Ports: simPorts{d}, Health: simHealth{s}, Store: simStore{d}, Docker: simView{d},
		DeviceErrors: []error{errLink}, Culprit: func() string { return "" }, StateLost: s.fresh,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	d.loop = loop
	d.driver = driver.New(driver.Options{Store: simStore{d}, Core: simCore{loop}, Links: simVeths{d}, Labels: simLabels{d}})
	d.handler = d.driver.Handler()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = loop.Run(ctx) }) // ends without an error when ctx does
	running.Go(func() { d.listen(ctx) })
	d.end = func() { cancel(); running.Wait() }
	s.do(func() { s.daemon = d })
	s.engine.tell()
	if _, err := loop.Last(ctx); err != nil { // Docker is not answered before
		s.t.Fatal(err)
	}
}

// listen takes in what Docker tells, some time later.
func (d *daemon) listen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.news:
		}
		d.pause()
		d.do(func() {
			if d.engine.up {
				d.view = d.engine.list()
			}
		})
		d.loop.Poke()
	}
}

// stop ends the daemon: as systemd does, or as the OOM killer does.
func (s *sim) stop(kill bool) {
	d := s.daemon
	if d == nil {
		return
	}
	s.do(func() { d.dead = d.dead || kill })
	d.end()
	s.do(func() { d.dead, s.daemon = true, nil })
	synctest.Wait()
}

// alive reports whether a daemon runs.
func (s *sim) alive() (yes bool) {
	s.do(func() { yes = s.daemon != nil && !s.daemon.dead })
	return yes
}

// poke tells the daemon that something changed, as netlink would.
func (s *sim) poke() {
	if s.daemon != nil {
		s.daemon.loop.Poke()
	}
}

// simCore is the loop as the driver sees it.
type simCore struct{ *reconcile.Loop }

func (c simCore) Host(ctx context.Context) (model.Host, error) {
	res, err := c.Last(ctx)
	if err != nil {
		return model.Host{}, err
	}
	return res.Host, nil
}

func (c simCore) PortError(endpoint string) error {
	res, err := c.Last(context.Background())
	if err != nil {
		return err
	}
	return res.PortErrors[endpoint]
}

func (c simCore) EIPs() map[netip.Addr]netip.Addr { return nil }

// simView is what the daemon knows of Docker.
type simView struct{ *daemon }

func (v simView) Problems() []model.Problem { return nil }

func (v simView) View() (out reconcile.DockerView, ok bool) {
	v.do(func() {
		if ok = v.view != nil; ok {
			out = *v.view
			out.Incomplete = v.lost
		}
	})
	return out, ok
}

// simLabels are the questions that the driver asks Docker.
type simLabels struct{ *daemon }

func (l simLabels) Up() (up bool) {
	l.do(func() { up = l.engine.up && l.view != nil })
	return up
}

func (l simLabels) Container(ctx context.Context, _, endpointID string) (c model.Container, err error) {
	l.pause()
	hang := false
	l.do(func() {
		hang = l.engine.mute
		if owner := l.engine.owner(endpointID); owner != nil {
			c = owner.model()
		}
	})
	if hang {
		<-ctx.Done()
		return model.Container{}, context.Cause(ctx)
	}
	if !c.Known {
		return c, errors.New("no such endpoint")
	}
	return c, nil
}

// simHealth knows which gateways are dead.
type simHealth struct{ *sim }

func (h simHealth) Look(_ context.Context, host model.Host, _ map[string]model.NICID, watch []string) map[string]model.Health {
	out := make(map[string]model.Health)
	h.do(func() {
		for _, name := range watch {
			n, there := host.NIC(name)
			switch l := h.kernel.links[name]; {
			case !there || l == nil:
				out[name] = model.Health{State: model.Failed, Why: "is not there"}
			default:
				health := model.Health{}
				if l.mute {
					health = model.Health{State: model.Failed, Why: "gateway does not answer"}
				}
				out[name] = n.Fitness(health)
			}
		}
	})
	return out
}

// disk is what is persisted. Each write is whole or not at all.
type disk struct {
	networks  map[string]model.Network
	endpoints map[string]model.Endpoint
	rebinds   map[string]model.Rebind
	ids       map[string]model.NICID
	originals map[string]string
}

func newDisk() *disk {
	return &disk{
		make(map[string]model.Network), make(map[string]model.Endpoint), make(map[string]model.Rebind),
		make(map[string]model.NICID), make(map[string]string),
	}
}

// simStore is the disk as one daemon sees it.
type simStore struct{ *daemon }

// HostEntries: the host has none here.
func (s simStore) HostEntries() []model.HostEntry { return nil }

func stored[T any](s simStore, m *map[string]T) (out []T) {
	s.do(func() {
		for _, k := range slices.Sorted(maps.Keys(*m)) {
			out = append(out, (*m)[k])
		}
	})
	return out
}

func (s simStore) put(what string, same bool, fn func()) error {
	if same {
		return nil
	}
	if s.faults.disk {
		return errFault
	}
	return s.write("disk: "+what, fn)
}

func putIn[T any](s simStore, m map[string]T, key string, v T) (err error) {
	s.do(func() {
		old, there := m[key]
		err = s.put(key, there && equal(old, v), func() { m[key] = v })
	})
	return err
}

func deleteFrom[T any](s simStore, m map[string]T, key string) (err error) {
	s.do(func() {
		_, there := m[key]
		err = s.put(key, !there, func() { delete(m, key) })
	})
	return err
}

func getFrom[T any](s simStore, m map[string]T, key string) (v T, ok bool) {
	s.do(func() { v, ok = m[key] })
	return v, ok
}

func (s simStore) Networks() []model.Network   { return stored(s, &s.disk.networks) }
func (s simStore) Endpoints() []model.Endpoint { return stored(s, &s.disk.endpoints) }
func (s simStore) Rebinds() []model.Rebind     { return stored(s, &s.disk.rebinds) }
func (s simStore) Network(id string) (model.Network, bool) {
	return getFrom(s, s.disk.networks, id)
}

func (s simStore) Endpoint(id string) (model.Endpoint, bool) {
	return getFrom(s, s.disk.endpoints, id)
}
func (s simStore) Rebind(id string) (model.Rebind, bool) { return getFrom(s, s.disk.rebinds, id) }
func (s simStore) PutNetwork(n model.Network) error      { return putIn(s, s.disk.networks, n.ID, n) }

func (s simStore) PutEndpoint(e model.Endpoint) error { return putIn(s, s.disk.endpoints, e.ID, e) }

func (s simStore) PutRebind(r model.Rebind) error {
	return putIn(s, s.disk.rebinds, r.ContainerID, r)
}
func (s simStore) DeleteNetwork(id string) error  { return deleteFrom(s, s.disk.networks, id) }
func (s simStore) DeleteEndpoint(id string) error { return deleteFrom(s, s.disk.endpoints, id) }
func (s simStore) DeleteRebind(id string) error   { return deleteFrom(s, s.disk.rebinds, id) }

func (s simStore) UpdateEndpoint(id string, fn func(*model.Endpoint)) (err error) {
	s.do(func() {
		e, ok := s.disk.endpoints[id]
		if !ok {
			return
		}
		old := e
		fn(&e)
		err = s.put(id, equal(old, e), func() { s.disk.endpoints[id] = e })
	})
	return err
}

func (s simStore) NICIDs() (ids map[string]model.NICID) {
	s.do(func() { ids = maps.Clone(s.disk.ids) })
	return ids
}

func (s simStore) SetNICIDs(ids map[string]model.NICID) (err error) {
	s.do(func() { err = s.put("NIC ids", maps.Equal(ids, s.disk.ids), func() { s.disk.ids = maps.Clone(ids) }) })
	return err
}

func (s simStore) NICKnown(name string) bool {
	_, known := s.NICIDs()[name]
	return known
}
