package reconcile_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// What began before the daemon and leaves otherwise by now is forgotten when
// it starts, and nothing else.
func TestFlowsFromBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true) // pinned to eth0
		w.do(func() {
			e := w.endpoints["a"]
			e.Container.Labels = map[string]string{"eip.nic": "eth0", "eip.except": "10.0.0.0/8"}
			w.endpoints["a"] = e
		})
		at := netip.MustParseAddr
		stays := [][3]netip.Addr{
			{at("172.19.0.100"), at("203.0.113.5"), at("172.31.0.8")},  // as now
			{at("172.19.0.100"), at("10.1.2.3"), at("192.168.7.1")},    // an excepted destination
			{at("172.19.0.100"), at("172.31.0.8"), at("172.19.0.1")},   // to a sibling's published port
			{at("172.19.0.200"), at("203.0.113.5"), at("172.31.0.8")},  // of one that is gone, as the host routes
			{at("192.168.7.2"), at("203.0.113.5"), at("172.31.0.14")},  // nobody's
			{at("172.17.0.1"), at("203.0.113.5"), at("172.31.0.14")},   // the host's own, from a bridge's address
			{at("172.19.0.100"), at("172.19.0.7"), at("172.19.0.100")}, // to a neighbour
			{at("172.19.0.100"), at("172.31.0.8"), at("172.19.0.100")}, // to the host
			{at("203.0.113.6"), at("172.31.0.8"), at("203.0.113.6")},   // from outside
		}
		w.host.Locals = []netip.Addr{at("172.31.0.8"), at("172.31.0.14"), at("172.17.0.1")}
		w.host.NICs = append(w.host.NICs, model.NIC{Name: "eth1", Up: true, Carrier: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.14/20")}})
		w.flows = append(slices.Clone(stays),
			[3]netip.Addr{at("172.19.0.100"), at("203.0.113.5"), at("172.31.0.14")},
			[3]netip.Addr{at("172.19.0.100"), at("203.0.113.5"), at("172.19.0.100")}, // while there was no table
			[3]netip.Addr{at("172.19.0.100"), at("10.1.2.3"), at("172.31.0.14")},     // an excepted destination, when it was none
			[3]netip.Addr{at("172.19.0.200"), at("203.0.113.5"), at("172.31.0.14")},  // of one that is gone and was pinned
			[3]netip.Addr{at("192.168.7.3"), at("203.0.113.5"), at("172.31.0.14")},   // of one that an earlier process had pinned
			[3]netip.Addr{at("192.168.7.4"), at("203.0.113.5"), at("172.31.0.99")},   // of one that it had pinned, by the claim; no NIC has that address any more
		)
		w.firewall.Sources = []plan.Source{{Addr: at("192.168.7.3"), Verdict: plan.Pinned}}
		w.spoof = []plan.BridgePort{{Name: "veth4", Addrs: []netip.Addr{at("192.168.7.4")}}, {Name: "docker0", Addrs: []netip.Addr{at("172.17.0.1")}}}
		start(t, w)
		if !slices.Equal(w.flows, stays) {
			t.Errorf("flows left: %v", w.flows)
		}
	})
}

// What a container that goes over to the host's way had begun by a NIC that is
// gone, with its address, is forgotten, though nobody has that address any more.
func TestFlowsOfANICThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		w.do(func() {
			e := w.endpoints["a"]
			e.Container.Labels = map[string]string{"eip.nic": "eth9", "eip.fallback": "host"}
			w.endpoints["a"] = e
		})
		at := netip.MustParseAddr
		w.flows = [][3]netip.Addr{{at("172.19.0.100"), at("203.0.113.5"), at("172.31.0.99")}}
		w.firewall.Sources = []plan.Source{{Addr: at("172.19.0.100"), Verdict: plan.Pinned}} // by an earlier process
		start(t, w)
		wait(reconcile.MinInterval)
		synctest.Wait()
		if w.do(func() {
			if len(w.flows) > 0 {
				t.Errorf("flows left: %v", w.flows)
			}
		}); w.source("172.19.0.100").Verdict != plan.ViaHost {
			t.Errorf("source %+v", w.source("172.19.0.100"))
		}
	})
}

// What could not be forgotten is tried again.
func TestFlowsFromBeforeTheStartAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true)
		at := netip.MustParseAddr
		w.flows = [][3]netip.Addr{{at("172.19.0.100"), at("203.0.113.5"), at("172.31.0.14")}}
		w.unflushed = errors.New("conntrack is busy")
		start(t, w)
		if len(w.flows) != 1 {
			t.Fatalf("flows left: %v", w.flows)
		}
		w.do(func() { w.unflushed = nil })
		wait(2 * reconcile.RetryInterval)
		w.do(func() {
			if len(w.flows) > 0 {
				t.Errorf("flows left: %v", w.flows)
			}
		})
	})
}

// leaves has a container send by its first network.
func (s *sim) leaves(c *dockerContainer) (out exit) {
	s.do(func() { out = s.kernel.send(c.at[0]) })
	return out
}

// onStock is a sim in which app is pinned to eth1 on a strict network of Docker's.
func onStock(t *testing.T, seed uint64) (*sim, *dockerContainer) {
	t.Helper()
	s := newSim(t, seed)
	s.engine.moves = func(*dockerContainer) {}
	s.start(0)
	if err := s.engine.createNetwork("net0", false, netip.MustParsePrefix("172.19.0.0/16"), map[string]string{"eip.strict": "true"}); err != nil {
		t.Fatal(err)
	}
	c := &dockerContainer{id: "c1", name: "app", labels: map[string]string{"eip.nic": "eth1"}, networks: []string{"net0"}}
	s.do(func() { s.engine.containers["app"] = c })
	if err := s.engine.begin(c); err != nil {
		t.Fatal(err)
	}
	wait(time.Second)
	if got := s.leaves(c); got.nic != "eth1" {
		t.Fatalf("leaves by %v", got)
	}
	return s, c
}

// Docker may answer while the first pass is under way, which has not seen it.
func TestRestartKeepsConnections(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			s, c := onStock(t, seed)
			now := flow{c.at[0].endpoint, c.at[0].addr, netip.MustParseAddr("172.31.0.14")}
			s.do(func() { s.kernel.flows[now] = true })
			s.stop(true)
			s.start(0)
			wait(time.Second)
			s.do(func() {
				if !s.kernel.flows[now] {
					t.Error("a connection of a pinned container was forgotten")
				}
			})
			s.stop(true)
		})
	}
}

// While Docker is away its list is old: an address that it lists may be another
// container's by now.
func TestAddressOfAContainerThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := onStock(t, 1) // MAC addresses are made of IP addresses, as up to Docker 27
		addr := c.at[0].addr
		s.do(func() { s.engine.up = false })
		s.engine.end(c, false)
		wait(time.Second)
		other := &dockerContainer{id: "c2", name: "other", labels: map[string]string{"eip.nic": "eth2"}, networks: []string{"net0"}}
		s.do(func() { s.engine.containers["other"] = other })
		if err := s.engine.begin(other); err != nil || other.at[0].addr != addr {
			t.Fatalf("%v, %v", other.at, err)
		}
		if got := s.leaves(other); got != (exit{}) {
			t.Errorf("leaves by %v before anybody knows it", got)
		}
		s.do(func() { s.engine.up = true })
		s.engine.tell()
		wait(time.Second)
		if got := s.leaves(other); got.nic != "eth2" {
			t.Errorf("leaves by %v", got)
		}
		s.stop(true)
	})
}
