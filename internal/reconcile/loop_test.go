package reconcile_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// world is a behaving fake of everything around the loop: the host, the
// kernel's three tables, the port sockets, the store and Docker.
type world struct {
	mu           sync.Mutex
	host         model.Host
	links        plan.Links
	routing      plan.Routing
	firewall     plan.Firewall
	ports        []plan.Port
	taken        map[plan.Forward]bool
	bridges      []string
	networks     []model.Network
	endpoints    map[string]model.Endpoint
	ids          map[string]model.NICID
	rebinds      map[string]model.Rebind
	health       map[string]model.Health
	docker       map[string]model.Container // nil: has not answered yet
	said         []model.Problem            // of Docker
	log          logBuffer
	flushed      []netip.AddrPort
	moved        []netip.Addr
	flows        [][3]netip.Addr // translated ones: from, to, as
	spoof        []plan.BridgePort
	strays       []model.Stray
	groups       map[string]model.Cgroup // of containers on the host's network
	noChain      bool                    // Docker has not made DOCKER-USER
	wedged       chan struct{}           // iptables hangs until it is closed
	noForwarding error                   // iptables fails
	broken       error                   // of links
	unflushed    error                   // of translated flows
	unmoved      error                   // of those of moved pins

	passes, writes, forwardings, removals, served int
	refuse                                        error // of the firewall

	heard func() // as nftables tells of every change of Docker's chain

	entries []model.HostEntry
}

// do changes the world while the loop may be looking.
func (w *world) do(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

// read reads a counter while the loop may be looking.
func (w *world) read(counter *int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *counter
}

// accepts is how many bridges Docker's chain has accepts for.
func (w *world) accepts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.bridges)
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func newWorld() *world {
	return &world{
		host: model.Host{NICs: []model.NIC{{
			Name: "eth0", Up: true, Carrier: true, Primary: true,
			Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.8/20")}, Gateway4: model.Gateway{Addr: netip.MustParseAddr("172.31.0.1"), Source: "route"},
		}}},
		endpoints: make(map[string]model.Endpoint), ids: make(map[string]model.NICID), taken: make(map[plan.Forward]bool),
		rebinds: make(map[string]model.Rebind),
	}
}

type (
	hostPart       struct{ *world }
	routerPart     struct{ *world }
	firewallPart   struct{ *world }
	forwardingPart struct{ *world }
	portsPart      struct{ *world }
	storePart      struct{ *world }
	dockerPart     struct{ *world }
)

// set stores a desired value as a kernel would, counting only real changes.
func set[T any](w *world, at *T, value T) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if reflect.DeepEqual(*at, value) {
		return false
	}
	*at = value
	w.writes++
	return true
}

func (p hostPart) Observe(context.Context, []string) (model.Host, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host, nil
}

func (p hostPart) Apply(_ context.Context, l plan.Links, _ []plan.Sysctl, prune bool) (bool, error) {
	p.mu.Lock()
	p.passes++
	if prune {
		p.removals++
	}
	p.mu.Unlock()
	var broken error
	p.do(func() { broken = p.broken })
	return set(p.world, &p.links, l), broken
}

func (p hostPart) FlushConntrackPorts(_ context.Context, dst []netip.AddrPort) (int, error) {
	p.do(func() { p.flushed = append(p.flushed, dst...) })
	return len(dst), nil
}

func (p hostPart) Peers(context.Context, []string) (map[string]string, error) { return nil, nil }

func (p hostPart) Cgroups(strays []model.Stray) map[string]model.Cgroup {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]model.Cgroup)
	for _, s := range strays {
		if g, ok := p.groups[s.Container.ID]; ok {
			out[s.Container.ID] = g
		}
	}
	return out
}

func (p hostPart) FlushConntrack(_ context.Context, addrs []netip.Addr) (int, error) {
	var err error
	p.do(func() {
		if err = p.unmoved; err == nil {
			p.moved = append(p.moved, addrs...)
		}
	})
	return len(addrs), err
}

func (p hostPart) FlushTranslated(_ context.Context, stale func(from, to, as netip.Addr) bool) (n int, err error) {
	p.do(func() {
		if err = p.unflushed; err != nil {
			return
		}
		p.flows = slices.DeleteFunc(p.flows, func(f [3]netip.Addr) bool { return stale(f[0], f[1], f[2]) })
	})
	return n, err
}

func (p routerPart) Apply(_ context.Context, r plan.Routing, _ bool) (bool, error) {
	return set(p.world, &p.routing, r), nil
}

// NICIDs are of the tables that the world's kernel has.
func (p routerPart) NICIDs() (map[string]model.NICID, error) {
	ids := make(map[string]model.NICID)
	p.do(func() {
		for _, r := range p.routing.Routes {
			if r.Dev != "" && r.Table > model.TableInside && r.Table < model.TableNull {
				ids[r.Dev] = model.NICID(r.Table - model.TableInside)
			}
		}
	})
	return ids, nil
}

// Wrote is what a kernel's part says of its last pass.
func (p routerPart) Wrote() []string { return []string{"rule 1", "rule 2"} }

func (p firewallPart) Apply(_ context.Context, fw plan.Firewall, _ bool) (bool, error) {
	var refuse error
	p.do(func() { refuse = p.refuse })
	if refuse != nil {
		return false, refuse
	}
	return set(p.world, &p.firewall, fw), nil
}

func (p firewallPart) Claimed() (out []netip.Addr, err error) {
	p.do(func() {
		for _, port := range p.spoof {
			out = append(out, port.Addrs...)
		}
	})
	return out, nil
}

func (p firewallPart) Pinned() (out []netip.Addr, err error) {
	p.do(func() {
		for _, s := range p.firewall.Sources {
			if s.Verdict == plan.Pinned {
				out = append(out, s.Addr)
			}
		}
	})
	return out, nil
}

func (p firewallPart) ClaimBridge(ctx context.Context, ports []plan.BridgePort) (bool, error) {
	var have []plan.BridgePort
	p.do(func() { have = p.spoof })
	return p.ApplyBridge(ctx, withheld(ports, have), false)
}

func (p firewallPart) ApplyBridge(_ context.Context, ports []plan.BridgePort, prune bool) (bool, error) {
	if !prune {
		ports = slices.Clone(ports)
		p.do(func() {
			for _, old := range p.spoof {
				if !slices.ContainsFunc(ports, func(b plan.BridgePort) bool { return b.Name == old.Name }) {
					ports = append(ports, old)
				}
			}
		})
		slices.SortFunc(ports, func(a, b plan.BridgePort) int { return cmp.Compare(a.Name, b.Name) })
	}
	return set(p.world, &p.spoof, ports), nil
}

func (p forwardingPart) Apply(_ context.Context, bridges []string) (reconcile.ForwardingOutcome, error) {
	var absent bool
	var wedged chan struct{}
	var refuse error
	var heard func()
	p.do(func() {
		p.forwardings++
		absent, wedged, refuse, heard = p.noChain, p.wedged, p.noForwarding, p.heard
	})
	if wedged != nil {
		<-wedged
	}
	if refuse != nil {
		return reconcile.ForwardingOutcome{}, refuse
	}
	if absent {
		return reconcile.ForwardingOutcome{Absent: true}, nil
	}
	changed := set(p.world, &p.bridges, bridges)
	if changed && heard != nil {
		heard()
	}
	return reconcile.ForwardingOutcome{Changed: changed}, nil
}

func (p portsPart) Set(want []plan.Port) map[plan.Port]error {
	p.mu.Lock()
	defer p.mu.Unlock()
	failed := make(map[plan.Port]error)
	for _, w := range want {
		if p.taken[w.Forward] {
			failed[w] = errors.New("port is already allocated")
		}
	}
	p.world.ports = want
	return failed
}

func (p portsPart) Serve() error {
	p.do(func() { p.served++ })
	return nil
}

func (p storePart) Networks() []model.Network {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.networks)
}

func (p storePart) HostEntries() []model.HostEntry {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.entries)
}

func (p storePart) Endpoints() []model.Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []model.Endpoint
	for _, id := range slices.Sorted(maps.Keys(p.endpoints)) {
		out = append(out, p.endpoints[id])
	}
	return out
}
func (p storePart) PutNetwork(model.Network) error { return nil }
func (p storePart) DeleteNetwork(string) error     { return nil }
func (p storePart) NICIDs() map[string]model.NICID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.ids)
}

func (p storePart) SetNICIDs(ids map[string]model.NICID) error {
	p.do(func() { p.ids = maps.Clone(ids) })
	return nil
}

func (p storePart) Rebinds() []model.Rebind {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.rebinds))
}

func (p storePart) PutRebind(r model.Rebind) error {
	p.do(func() { p.rebinds[r.ContainerID] = r })
	return nil
}

func (p storePart) DeleteRebind(id string) error {
	p.do(func() { delete(p.rebinds, id) })
	return nil
}

func (p storePart) UpdateEndpoint(id string, fn func(*model.Endpoint)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.endpoints[id]
	fn(&e)
	p.endpoints[id] = e
	return nil
}

type healthPart struct{ *world }

func (p healthPart) Look(_ context.Context, _ model.Host, _ map[string]model.NICID, watch []string) map[string]model.Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]model.Health)
	for _, name := range watch {
		out[name] = p.health[name]
	}
	return out
}

func (p dockerPart) View() (reconcile.DockerView, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return reconcile.DockerView{Containers: p.docker, Strays: p.strays}, p.docker != nil
}

func (p dockerPart) Problems() []model.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said
}

func (w *world) endpoint(id string, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := model.Endpoint{ID: id, NetworkID: "net", Addr4: netip.MustParseAddr("172.19.0.100"), Phase: model.Joined}
	if known {
		e.Container = model.Container{Known: true, Name: "app", Labels: map[string]string{"eip.nic": "eth0"}}
	}
	w.endpoints[id] = e
}

func options(w *world) reconcile.Options {
	return reconcile.Options{
		Log: slog.New(slog.NewTextHandler(&w.log, nil)), Settings: plan.Settings{Mask: model.DefaultMask},
		Host: hostPart{w}, Router: routerPart{w}, Firewall: firewallPart{w}, Forwarding: forwardingPart{w},
		Ports: portsPart{w}, Store: storePart{w}, Docker: dockerPart{w}, Health: healthPart{w},
		Culprit: func() string { return "process vandal" },
	}
}

func start(t *testing.T, w *world) *reconcile.Loop {
	t.Helper()
	return startLoop(t, w, options(w))
}

func startLoop(t *testing.T, w *world, o reconcile.Options) *reconcile.Loop {
	t.Helper()
	w.networks = []model.Network{{ID: "net", Bridge: "eip_bridge", Subnet4: netip.MustParsePrefix("172.19.0.0/16"), Gateway4: netip.MustParseAddr("172.19.0.1")}}
	l, err := reconcile.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
	return l
}

func TestAPassWithoutChangeWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		l := start(t, w)
		writes := w.read(&w.writes)
		for range 100 {
			l.Poke()
			time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
		}
		synctest.Wait()
		if w.read(&w.passes) < 50 {
			t.Errorf("%d passes after 100 pokes", w.read(&w.passes))
		}
		if w.read(&w.writes) != writes {
			t.Errorf("%d writes in passes without change", w.read(&w.writes)-writes)
		}
	})
}

func TestPokesAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		l := start(t, w)
		before := w.read(&w.passes)
		for range 10000 {
			l.Poke()
		}
		time.Sleep(time.Second) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if got := w.read(&w.passes) - before; got < 1 || got > 2 {
			t.Errorf("%d passes after a burst of pokes, want one or two", got)
		}
	})
}

func TestSyncSeesWhatWasStoredBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		l := start(t, w)
		w.endpoint("a", true)
		begin := time.Now()
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(w.firewall.Sources) != 1 || w.firewall.Sources[0].Verdict != plan.Pinned {
			t.Errorf("sources after Sync: %+v", w.firewall.Sources)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("Sync waited %v for a timer", took)
		}
	})
}

func TestFailedPassIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		l := start(t, w)
		w.do(func() { w.refuse = errors.New("the kernel said no") })
		w.endpoint("a", true)
		if err := l.Sync(t.Context()); !errors.Is(err, w.refuse) {
			t.Fatalf("Sync: %v", err)
		}
		w.do(func() { w.refuse = nil })
		time.Sleep(reconcile.RetryInterval) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if len(w.firewall.Sources) != 1 {
			t.Error("not repaired after the retry interval")
		}
	})
}

func TestNothingIsRemovedBeforeDockerAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		l := start(t, w)
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.read(&w.removals) != 0 {
			t.Errorf("%d passes removed things before Docker's first answer", w.read(&w.removals))
		}
		w.do(func() { w.docker = map[string]model.Container{} })
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.read(&w.removals) != 1 {
			t.Error("no removal after Docker's first answer")
		}
	})
}

func TestPendingIsDecidedWhenDockerTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.endpoint("a", false)
		l := start(t, w)
		if s := w.firewall.Sources; len(s) != 1 || s[0].Verdict != plan.Pending {
			t.Fatalf("sources before Docker told: %+v", s)
		}
		w.do(func() {
			w.docker = map[string]model.Container{"a": {Known: true, Name: "app", Labels: map[string]string{"eip.nic": "eth0"}}}
		})
		l.Poke()
		time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if s := w.firewall.Sources; len(s) != 1 || s[0].Verdict != plan.Pinned {
			t.Errorf("sources after Docker told: %+v", s)
		}
		if !w.endpoints["a"].Container.Known {
			t.Error("what Docker told was not remembered")
		}
	})
}

func TestRenamedContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.endpoint("a", true)
		e := w.endpoints["a"]
		e.Container.ID = "c1"
		w.endpoints["a"] = e
		l := start(t, w)
		tell := func(c model.Container) model.Container {
			w.do(func() { w.docker = map[string]model.Container{"a": c} })
			l.Poke()
			time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
			synctest.Wait()
			return w.endpoints["a"].Container
		}
		if got := tell(model.Container{Known: true, ID: "c1", Name: "new"}); got.Name != "new" || got.Labels["eip.nic"] != "eth0" {
			t.Errorf("after docker rename: %+v, want the new name and the old labels", got)
		}
		if got := tell(model.Container{Known: true, ID: "c2", Name: "other"}); got.ID != "c2" || got.Name != "other" || len(got.Labels) > 0 {
			t.Errorf("docker says that it is another container's: %+v", got)
		}
	})
}

func TestTakenPortIsNotForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		e := w.endpoints["a"]
		e.Publishes = []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}, {Proto: model.UDP, HostPort: 53, Port: 53}}
		w.endpoints["a"] = e
		w.taken[plan.Forward{Proto: model.TCP, Addr: netip.MustParseAddr("172.31.0.8"), Port: 8090, To: netip.MustParseAddrPort("172.19.0.100:8080")}] = true
		l := start(t, w)
		res, err := l.Last(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if res.PortErrors["a"] == nil {
			t.Error("no error for the taken port")
		}
		if f := w.firewall.Forwards; len(f) != 1 || f[0].Proto != model.UDP {
			t.Errorf("forwards: %+v", f)
		}
		if len(w.flushed) != 0 {
			t.Errorf("flushed %v: what was published before the daemon started goes on", w.flushed)
		}
		w.do(func() {
			e.Publishes = append(e.Publishes, model.Publish{Proto: model.UDP, HostPort: 54, Port: 53})
			w.endpoints["a"] = e
		})
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(w.flushed) != 1 || w.flushed[0] != netip.MustParseAddrPort("172.31.0.8:54") {
			t.Errorf("flushed %v, want the new UDP port once", w.flushed)
		}
	})
}
