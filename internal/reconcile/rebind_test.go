package reconcile_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// twoNICs is a world with eth0 and eth1, container app (id c100) pinned to eth0
// with a published port, and container other (id c101) on eth1 with the ports.
func twoNICs(t *testing.T, ports ...model.Publish) (*world, *reconcile.Loop) {
	t.Helper()
	w := newWorld()
	w.docker = map[string]model.Container{}
	w.host.NICs = append(w.host.NICs, model.NIC{
		Name: "eth1", Up: true, Carrier: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.14/20")},
		Gateway4: model.Gateway{Addr: netip.MustParseAddr("172.31.0.1"), Source: "route"},
	})
	w.endpoint("a", true)
	w.endpoint("b", true)
	a, b := w.endpoints["a"], w.endpoints["b"]
	a.Container.ID, a.Publishes = "c100", []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 8080}}
	b.Container = model.Container{Known: true, ID: "c101", Name: "other", Labels: map[string]string{"eip.nic": "eth1"}}
	b.Addr4, b.Publishes = netip.MustParseAddr("172.19.0.101"), ports
	w.endpoints["a"], w.endpoints["b"] = a, b
	return w, start(t, w)
}

var toEth1 = map[string]string{"eip.nic": "eth1"}

// unlabel takes a container's labels away.
func (w *world) unlabel(endpoint string) {
	w.do(func() {
		e := w.endpoints[endpoint]
		e.Container.Labels = nil
		w.endpoints[endpoint] = e
	})
}

func (w *world) source(addr string) plan.Source {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.firewall.Sources, func(s plan.Source) bool { return s.Addr.String() == addr })
	if i < 0 {
		return plan.Source{}
	}
	return w.firewall.Sources[i]
}

func TestRebindMovesOneContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t)
		out, err := l.Rebind(t.Context(), "app", toEth1)
		if err != nil {
			t.Fatal(err)
		}
		if out.Name != "app" || len(out.After) != 1 || out.Before[0].NIC != "eth0" || out.After[0].NIC != "eth1" || out.After[0].From != model.FromRebind {
			t.Errorf("answered %+v", out)
		}
		if got := w.source("172.19.0.100"); got.NICName != "eth1" || got.Address != netip.MustParseAddr("172.31.0.14") {
			t.Errorf("moved to %+v", got)
		}
		if f := w.firewall.Forwards; len(f) != 1 || f[0].Addr != netip.MustParseAddr("172.31.0.14") {
			t.Errorf("published %+v", f)
		}
		// When the call returns the flows are forgotten, and nobody else's.
		if want := []netip.Addr{netip.MustParseAddr("172.19.0.100")}; !slices.Equal(w.moved, want) {
			t.Errorf("flushed %v, want %v", w.moved, want)
		}
		if out, err = l.Rebind(t.Context(), "c100", nil); err != nil || out.After[0].NIC != "eth0" || out.After[0].From != model.FromLabel {
			t.Errorf("cleared: %+v, %v", out, err)
		}
		if len(w.rebinds) != 0 {
			t.Errorf("remembers %v", w.rebinds)
		}
	})
}

func TestRebindRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, container string
		options         map[string]string
		network         map[string]string
		ports           []model.Publish
		want            string
	}{
		{name: "no such container", container: "web", options: toEth1, want: `no container "web" runs`},
		{name: "no name", options: toEth1, want: `no container ""`},
		{name: "ambiguous", container: "c1", options: toEth1, want: "the beginning of 2 containers"},
		{name: "no such NIC", container: "app", options: map[string]string{"eip.nic": "eth7"}, want: "eip.nic=eth7: no such NIC on this host; NICs of this host: eth0"},
		{name: "no selector", container: "app", options: map[string]string{"eip.fallback": "host"}, want: "say where to"},
		{name: "beyond the ceiling", container: "app", options: toEth1, network: map[string]string{"eip.allow": "eth0"}, want: "eth1 is beyond what its network allows (eip.allow=eth0)"},
		{name: "locked", container: "app", options: toEth1, network: map[string]string{"eip.lock": "true", "eip.nic": "eth0"}, want: "is locked"},
		{
			name: "another one's port", container: "app", options: toEth1, ports: []model.Publish{{Proto: model.TCP, HostPort: 8090, Port: 80}},
			want: "rebinding app: other has 172.31.0.14:8090/tcp published already",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, l := twoNICs(t, tc.ports...)
				w.do(func() { w.networks[0].Options = tc.network })
				if err := l.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				_, err := l.Rebind(t.Context(), tc.container, tc.options)
				if !errors.Is(err, reconcile.ErrRefused) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				if len(w.rebinds)+len(w.moved) != 0 {
					t.Errorf("remembers %v, flushed %v", w.rebinds, w.moved)
				}
			})
		})
	}
}

// A program that has joined a host entry moves with it, and its ports are the entry's.
func TestRebindMovesWhoHasJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t, model.Publish{Proto: model.TCP, HostPort: 8091, Port: 80})
		w.do(func() {
			web := model.HostEntry{
				Name: "web", Bridge: "br-web", Address: netip.MustParseAddr("172.29.0.100"), Options: map[string]string{"eip.nic": "eth0"},
				Publishes: []model.Publish{{Proto: model.TCP, HostPort: 8091, Port: 8091}},
			}
			w.entries = append(w.entries, web)
			w.networks = append(w.networks, model.Network{ID: model.ProgramsID, Bridge: model.ProgramsBridge, Subnet4: netip.MustParsePrefix("10.231.0.0/20"), Gateway4: netip.MustParseAddr("10.231.0.1")})
			w.endpoints["z"] = model.Endpoint{
				ID: "z", NetworkID: model.ProgramsID, Addr4: netip.MustParseAddr("10.231.0.2"), Phase: model.Joined, As: "web", Veth: "ev-z",
				Options: web.Options, Publishes: web.Publishes, Container: model.Container{Known: true, ID: "z", Name: "server"},
			}
		})
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.source("10.231.0.2"); got.NICName != "eth0" {
			t.Errorf("at first on %+v", got)
		}
		want := "rebinding web: other has 172.31.0.14:8091/tcp published already"
		if _, err := l.Rebind(t.Context(), "web", toEth1); !errors.Is(err, reconcile.ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		w.do(func() {
			other := w.endpoints["b"]
			other.Publishes = nil
			w.endpoints["b"] = other
		})
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Rebind(t.Context(), "web", toEth1); err != nil {
			t.Fatal(err)
		}
		if got := w.source("10.231.0.2"); got.NICName != "eth1" {
			t.Errorf("left behind on %+v", got)
		}
	})
}

// A program of the host has the port on the new NIC: nobody knows before it is
// tried. Then it stays, or comes back, where it was.
func TestRebindThatFailsIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t)
		w.do(func() {
			w.taken[plan.Forward{Proto: model.TCP, Addr: netip.MustParseAddr("172.31.0.14"), Port: 8090, To: netip.MustParseAddrPort("172.19.0.100:8080")}] = true
		})
		_, err := l.Rebind(t.Context(), "app", toEth1)
		if err == nil || !strings.Contains(err.Error(), "already allocated") || !strings.Contains(err.Error(), "stays where it was") {
			t.Fatalf("%v", err)
		}
		synctest.Wait()
		if got := w.source("172.19.0.100"); got.NICName != "eth0" || len(w.rebinds) != 0 {
			t.Errorf("left at %+v, remembers %v", got, w.rebinds)
		}
		if f := w.firewall.Forwards; len(f) != 1 || f[0].Addr != netip.MustParseAddr("172.31.0.8") {
			t.Errorf("published %+v", f)
		}
	})
}

// Who has just started a container may rebind it at once, though Docker's word
// of it is still on its way; and that another container had its name before,
// and was rebound, does not matter.
func TestRebindOfOneThatHasJustStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t)
		b := w.endpoints["b"]
		w.do(func() {
			delete(w.endpoints, "b")
			w.endpoints["gone"] = model.Endpoint{ID: "gone", NetworkID: "net", Addr4: netip.MustParseAddr("172.19.0.102"), Phase: model.Joined, Container: model.Container{Name: "other"}}
			w.rebinds["c0"] = model.Rebind{ContainerID: "c0", Name: "other", Options: toEth1}
		})
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() {
			w.do(func() { w.endpoints["b"] = b })
			l.Poke()
		})
		out, err := l.Rebind(t.Context(), "other", map[string]string{"eip.nic": "eth0"})
		if err != nil || out.ContainerID != "c101" || len(out.After) != 1 || out.After[0].NIC != "eth0" {
			t.Errorf("%+v, %v", out, err)
		}
	})
}

// What is not pinned any more follows the host's routing only when its
// connections are forgotten, which bear the NIC's address; as long as they
// cannot be, it is held.
func TestUnpinnedLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t)
		w.unlabel("a")
		w.do(func() { w.unmoved = errors.New("conntrack is busy") })
		verdict := func() (v plan.Verdict) {
			synctest.Wait()
			return w.source("172.19.0.100").Verdict
		}
		for range 3 {
			if err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if v := verdict(); v != plan.Pending {
				t.Fatalf("with connections of its own it is %v", v)
			}
		}
		w.do(func() { w.unmoved = nil })
		wait(2 * reconcile.RetryInterval)
		if v := verdict(); v != plan.ViaHost || len(w.moved) == 0 {
			t.Errorf("then it is %v, forgotten: %v", v, w.moved)
		}
	})
}

// A destination that is excepted from now on is reached with another address.
func TestNewExceptionForgetsFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t)
		if _, err := l.Rebind(t.Context(), "app", map[string]string{"eip.nic": "eth0", "eip.except": "10.0.0.0/8"}); err != nil {
			t.Fatal(err)
		}
		if want := []netip.Addr{netip.MustParseAddr("172.19.0.100")}; !slices.Equal(w.moved, want) {
			t.Errorf("flushed %v, want %v", w.moved, want)
		}
	})
}

// Cleared, app would be published on all addresses, and a program of the host
// has the port on one of them.
func TestClearedRebindThatFailsIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := twoNICs(t)
		w.unlabel("a")
		if _, err := l.Rebind(t.Context(), "app", toEth1); err != nil {
			t.Fatal(err)
		}
		w.do(func() {
			w.taken[plan.Forward{Proto: model.TCP, Addr: netip.IPv4Unspecified(), Port: 8090, To: netip.MustParseAddrPort("172.19.0.100:8080")}] = true
		})
		if _, err := l.Rebind(t.Context(), "app", nil); err == nil || !strings.Contains(err.Error(), "stays where it was") {
			t.Errorf("cleared: %v", err)
		}
		synctest.Wait()
		if got := w.source("172.19.0.100"); got.NICName != "eth1" {
			t.Errorf("left at %+v", got)
		}
	})
}
