package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// linkError is an error about one link, as internal/host's are.
type linkError struct{ link string }

func (e linkError) Error() string   { return "making bridge " + e.link + ": the name is in use" }
func (e linkError) Subject() string { return e.link }

// One network's broken bridge is told to who depends on it, and to nobody else.
func TestFailureOfOneObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		l := start(t, w)
		w.do(func() { w.broken = fmt.Errorf("two things: %w", errors.Join(errors.New("a sysctl"), linkError{"br2"})) })
		if err := l.Sync(t.Context(), "eip_bridge"); err != nil {
			t.Errorf("who depends on eip_bridge got %v", err)
		}
		if err := l.Sync(t.Context(), "br2"); err == nil {
			t.Error("who depends on br2 got no error")
		}
		synctest.Wait()
		res, err := l.Last(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Problems) == 0 {
			t.Error("the failure is no problem")
		}
		w.do(func() { w.broken = nil })
		time.Sleep(reconcile.RetryInterval) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if res, _ := l.Last(t.Context()); len(res.Problems) > 0 {
			t.Errorf("not repaired after the retry interval: %v", res.Problems)
		}
	})
}

// fullDisk is a store that takes nothing new about NICs and networks.
type fullDisk struct{ storePart }

func (fullDisk) SetNICIDs(map[string]model.NICID) error { return errors.New("no space left on device") }

func (fullDisk) PutNetwork(model.Network) error { return errors.New("no space left on device") }

// A store that takes nothing is told, and refuses no container. As long as that
// lasts, no NIC takes the number of another one.
func TestStoreThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		nic := func(name, addr string) model.NIC {
			return model.NIC{
				Name: name, Up: true, Carrier: true, Included: true, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)},
				Gateway4: model.Gateway{Addr: netip.MustParseAddr("172.31.0.1"), Source: "route"},
			}
		}
		eth0, eth1 := nic("eth0", "172.31.0.8/20"), nic("eth1", "172.31.0.14/20")
		w.host.NICs = []model.NIC{eth1}
		o := options(w)
		o.Store = fullDisk{storePart{w}}
		l, err := reconcile.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = l.Run(ctx) }()
		id := func() model.NICID {
			t.Helper()
			if err := l.Sync(t.Context()); err != nil {
				t.Errorf("who waits for the pass got %v", err)
			}
			synctest.Wait()
			res, err := l.Last(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(res.Problems, func(p model.Problem) bool { return p.Code == model.CodeApply }) {
				t.Errorf("nothing says that the disk is full: %v", res.Problems)
			}
			return res.Desired.IDs["eth1"]
		}
		before := id()
		w.do(func() { w.host.NICs = []model.NIC{eth0, eth1} })
		if after := id(); before == 0 || after != before {
			t.Errorf("eth1 was number %d, and is %d when eth0 comes", before, after)
		}
		cancel()
		synctest.Wait()
	})
}

// eipnet starts before Docker at boot: DOCKER-USER comes later, and is looked
// for until it is there.
func TestForwardingWaitsForDocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.noChain = true
		l := start(t, w)
		w.do(func() { w.noChain = false })
		l.Poke()
		time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
		synctest.Wait()
		if w.accepts() != 1 {
			t.Error("the accepts were not made in the first pass after Docker made its chain")
		}
		before := w.read(&w.forwardings)
		for range 20 {
			l.Poke()
			time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
		}
		synctest.Wait()
		if w.read(&w.forwardings) > before+1 {
			t.Errorf("iptables ran %d times in passes without change", w.read(&w.forwardings)-before)
		}
	})
}

// Who waits while the daemon shuts down is told so at once.
func TestSyncWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		l, err := reconcile.New(options(w))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Run(ctx); err != nil {
			t.Errorf("a cancelled run ended with %v", err)
		}
		if err := l.Sync(t.Context()); !errors.Is(err, reconcile.ErrStopped) {
			t.Errorf("Sync after the end: %v", err)
		}
		if w.read(&w.passes) != 0 {
			t.Error("a pass was begun though everything was over")
		}
	})
}

// TestFlowsOfAnAddressThatIsGone: a NIC that comes back with another address
// ends the flows that began with the old one, and only those; with the same
// address, they go on.
func TestFlowsOfAnAddressThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		l := start(t, w)
		as := func(addrs ...string) []netip.Addr {
			t.Helper()
			w.do(func() {
				w.moved = nil
				w.host.NICs = slices.Clone(w.host.NICs)
				w.host.NICs[0].Addrs = nil
				for _, a := range addrs {
					w.host.NICs[0].Addrs = append(w.host.NICs[0].Addrs, netip.MustParsePrefix(a))
				}
			})
			if err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return w.moved
		}
		app := []netip.Addr{netip.MustParseAddr("172.19.0.100")}
		for _, step := range []struct {
			addrs []string
			want  []netip.Addr
		}{
			{[]string{"172.31.0.8/20"}, nil},
			{nil, nil}, // held: nothing leaves
			{[]string{"172.31.0.8/20"}, nil},
			{nil, nil},
			{nil, nil},
			{[]string{"172.31.0.9/20"}, app},
			{[]string{"172.31.0.9/20", "172.31.0.8/20"}, nil},
			{[]string{"172.31.0.8/20"}, app},
		} {
			if diff := cmp.Diff(step.want, as(step.addrs...), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("with %v, flows flushed (-want +got):\n%s", step.addrs, diff)
			}
		}
	})
}

// Whoever gets the address of a container that is gone does not get its pin: as
// long as the address is pinned it is claimed, too, whatever fails meanwhile.
func TestClaimsOutliveTheirPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		w.do(func() {
			a := w.endpoints["a"]
			a.Veth, a.MAC = "eipva", "02:42:ac:13:00:64"
			w.endpoints["a"] = a
		})
		l := start(t, w)
		claims := func() (n int) {
			w.do(func() { n = len(w.spoof) })
			return n
		}
		if claims() != 1 || w.source("172.19.0.100").NICName != "eth0" {
			t.Fatalf("%d claims, source %+v", claims(), w.source("172.19.0.100"))
		}
		w.do(func() {
			b := w.endpoints["a"] // the next one has its address, and pins nothing
			b.ID, b.Veth, b.Container = "b", "eipvb", model.Container{Known: true, Name: "next"}
			w.endpoints["b"] = b
			delete(w.endpoints, "a")
			w.refuse = errors.New("the table is busy")
		})
		if err := l.Sync(t.Context()); err == nil {
			t.Error("no error")
		}
		w.do(func() {
			for _, p := range w.spoof {
				if (len(p.Addrs) > 0) != (p.Name == "eipva") {
					t.Errorf("still pinned, and port %s may bear %v", p.Name, p.Addrs)
				}
			}
		})
		w.do(func() { w.refuse = nil; delete(w.endpoints, "b") })
		if err := l.Sync(t.Context()); err != nil {
			t.Error(err)
		}
		if claims() != 0 {
			t.Error("it is claimed for good")
		}
	})
}

// TestProxiesServeBehindTheFirewall: a port's proxy begins when its answers find
// their way, and not while the firewall cannot be applied.
func TestProxiesServeBehindTheFirewall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		l := start(t, w)
		w.do(func() { w.refuse = errors.New("the table is busy") })
		before := w.read(&w.served)
		if err := l.Sync(t.Context()); err == nil {
			t.Error("no error")
		}
		if n := w.read(&w.served); n != before {
			t.Error("proxies were begun without the firewall")
		}
		w.do(func() { w.refuse = nil })
		if err := l.Sync(t.Context()); err != nil || w.read(&w.served) == before {
			t.Errorf("proxies are not begun when it is there: %v", err)
		}
	})
}
