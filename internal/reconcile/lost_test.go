package reconcile_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// run is docker run.
func (s *sim) run(c *dockerContainer) *dockerContainer {
	s.t.Helper()
	s.do(func() { s.engine.containers[c.name] = c })
	if err := s.engine.begin(c); err != nil {
		s.t.Fatal(err)
	}
	wait(time.Second)
	return c
}

func (s *sim) leavesBy(when string, c *dockerContainer, nic string) {
	s.t.Helper()
	if got := s.leaves(c); got.nic != nic {
		s.t.Errorf("%s: %s leaves by %v, want %q", when, c.name, got, nic)
	}
}

// twoWays is a sim in which ours, on a network of ours, is pinned to eth1 and
// theirs, on one of Docker's, to eth2; eth1 has the lower id.
func twoWays(t *testing.T) (s *sim, ours, theirs *dockerContainer) {
	t.Helper()
	s = newSim(t, 1)
	s.engine.moves = func(*dockerContainer) {}
	s.start(0)
	for name, subnet := range map[string]string{"net0": "172.19.0.0/16", "net1": "172.20.0.0/16"} {
		if err := s.engine.createNetwork(name, name == "net0", netip.MustParsePrefix(subnet), nil); err != nil {
			t.Fatal(err)
		}
	}
	ours = s.run(&dockerContainer{id: "c1", name: "ours", labels: map[string]string{"eip.nic": "eth1"}, networks: []string{"net0"}})
	theirs = s.run(&dockerContainer{id: "c2", name: "theirs", labels: map[string]string{"eip.nic": "eth2"}, networks: []string{"net1"}})
	s.leavesBy("before", ours, "eth1")
	s.leavesBy("before", theirs, "eth2")
	return s, ours, theirs
}

// A state file that is lost takes the NICs' ids along; with others the old
// routes would lead elsewhere.
func TestLostStateKeepsNICIDs(t *testing.T) {
	for _, fault := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, ours, theirs := twoWays(t)
			s.stop(true)
			ids := s.disk.ids
			s.do(func() { s.disk, s.lost, s.faults.disk = newDisk(), true, fault })
			s.start(0)
			wait(time.Second)
			s.leavesBy("after", ours, "eth1")
			s.leavesBy("after", theirs, "eth2")
			s.do(func() { s.faults.disk = false })
			wait(2 * time.Second)
			s.do(func() {
				if !equal(s.disk.ids, ids) {
					t.Errorf("ids %v, were %v", s.disk.ids, ids)
				}
			})
			s.stop(true)
		})
	}
}

// Of one NIC alone the id may be lost, and another's may not be given to it.
func TestLostNICID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ours, theirs := twoWays(t)
		s.stop(true)
		s.do(func() {
			s.disk.ids = map[string]model.NICID{"eth9": 2} // eth2's is taken by now
			s.lost = true
		})
		s.start(0)
		wait(time.Second)
		s.leavesBy("after", ours, "eth1")
		if got := s.leaves(theirs); got.nic != "eth2" && got != (exit{}) {
			t.Errorf("leaves by %v", got)
		}
		s.do(func() {
			if s.disk.ids["eth1"] != 1 || s.disk.ids["eth2"] != 3 {
				t.Errorf("ids %v", s.disk.ids)
			}
		})
		s.stop(true)
	})
}

// A gateway that DHCP gives is followed also while nothing is taken away.
func TestGatewayChangesWhileStateIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ours, theirs := twoWays(t)
		s.stop(true)
		s.do(func() { s.disk, s.lost = newDisk(), true })
		s.start(0)
		wait(time.Second)
		next := netip.MustParseAddr("10.9.0.2")
		s.do(func() { s.kernel.links["eth2"].gateway = next })
		s.poke()
		wait(time.Second)
		s.leavesBy("after", ours, "eth1")
		s.leavesBy("after", theirs, "eth2")
		s.do(func() {
			if rt, _ := s.kernel.lookup(model.NICID(2).Table()); rt.Via != next {
				t.Errorf("eth2's route is %+v", rt)
			}
		})
		s.stop(true)
	})
}

// One endpoint's record is lost, and the rest of the file is there: what runs
// goes on, and the restart that the problem asks for mends it.
func TestLostEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ours, theirs := twoWays(t)
		s.stop(true)
		s.do(func() {
			delete(s.disk.endpoints, ours.at[0].endpoint)
			s.lost = true
		})
		s.start(0)
		wait(time.Minute)
		s.leavesBy("lost", ours, "eth1")
		s.leavesBy("lost", theirs, "eth2")
		s.engine.end(ours, true)
		s.run(ours)
		s.leavesBy("restarted", ours, "eth1")
		s.do(func() { s.lost = false })
		s.poke()
		wait(time.Second)
		s.leavesBy("all known", ours, "eth1")
		s.leavesBy("all known", theirs, "eth2")
		s.do(func() {
			veths := 0
			for _, l := range s.kernel.links {
				if l.kind == "veth" && l.alias != "" {
					veths++
				}
			}
			if veths != 1 || len(s.kernel.table.Sources) != 2 {
				t.Errorf("%d veths, sources %+v", veths, s.kernel.table.Sources)
			}
		})
		s.stop(true)
	})
}

// problems are those of a code, by subject.
func (s *sim) problems(code model.Code) (subjects []string) {
	s.t.Helper()
	res, err := s.daemon.loop.Last(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range res.Problems {
		if p.Code == code {
			subjects = append(subjects, p.Subject)
		}
	}
	return subjects
}

// rebound is a sim in which app, on one of Docker's networks and without a
// label, was rebound to eth1, and next to it free, which never was, and then
// the disk was lost.
func rebound(t *testing.T) (s *sim, app *dockerContainer) {
	t.Helper()
	s = newSim(t, 1)
	s.engine.moves = func(*dockerContainer) {}
	s.start(0)
	if err := s.engine.createNetwork("net1", false, netip.MustParsePrefix("172.20.0.0/16"), nil); err != nil {
		t.Fatal(err)
	}
	app = s.run(&dockerContainer{id: "c1", name: "app", networks: []string{"net1"}})
	free := s.run(&dockerContainer{id: "c2", name: "free", networks: []string{"net1"}})
	labelled := s.run(&dockerContainer{id: "c3", name: "labelled", labels: map[string]string{"eip.nic": "eth2"}, networks: []string{"net1"}})
	if _, err := s.daemon.loop.Rebind(t.Context(), "app", map[string]string{"eip.nic": "eth1"}); err != nil {
		t.Fatal(err)
	}
	s.leavesBy("rebound", app, "eth1")
	s.stop(true)
	s.do(func() { s.disk, s.fresh = newDisk(), true })
	s.start(0)
	wait(time.Minute)
	s.leavesBy("state lost", app, "")
	s.leavesBy("state lost", free, "eth0")
	s.leavesBy("state lost", labelled, "eth2")
	if got, want := s.problems(model.CodeStateLost), []string{"app", "state file"}; !slices.Equal(got, want) {
		t.Errorf("problems about %q, want %q", got, want)
	}
	s.do(func() {
		if len(s.disk.rebinds) != 1 {
			t.Errorf("remembered %+v", s.disk.rebinds)
		}
	})
	return s, app
}

// A container that was rebound does not leave by the host's routing when that is
// forgotten, and other daemons know it, too.
func TestLostRebindIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, app := rebound(t)
		for _, kill := range []bool{false, true} {
			s.stop(kill)
			s.do(func() { s.fresh = false })
			s.start(0)
			wait(time.Minute)
			s.leavesBy("another daemon", app, "")
			if got, want := s.problems(model.CodeStateLost), []string{"app"}; !slices.Equal(got, want) {
				t.Errorf("problems about %q, want %q", got, want)
			}
		}
		s.stop(true)
	})
}

// What ends it: the container is restarted or connected anew, or somebody says where it belongs.
func TestLostRebindEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		end func(*sim, *dockerContainer) error
		nic string
	}{
		"restart": {func(s *sim, c *dockerContainer) error { s.engine.end(c, true); return s.engine.begin(c) }, "eth0"},
		"rebind": {func(s *sim, _ *dockerContainer) error {
			_, err := s.daemon.loop.Rebind(s.t.Context(), "app", map[string]string{"eip.nic": "eth2"})
			return err
		}, "eth2"},
		"clear": {func(s *sim, _ *dockerContainer) error {
			_, err := s.daemon.loop.Rebind(s.t.Context(), "app", nil)
			return err
		}, "eth0"},
		"rebind and clear": {func(s *sim, _ *dockerContainer) error {
			_, err := s.daemon.loop.Rebind(s.t.Context(), "app", map[string]string{"eip.nic": "eth2"})
			if err == nil {
				_, err = s.daemon.loop.Rebind(s.t.Context(), "app", nil)
			}
			return err
		}, "eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, app := rebound(t)
				if err := tt.end(s, app); err != nil {
					t.Error(err)
				}
				wait(time.Second)
				s.leavesBy("after it", app, tt.nic)
				if got := s.problems(model.CodeStateLost); slices.Contains(got, "app") {
					t.Errorf("problems about %q", got)
				}
				s.stop(true)
				s.do(func() { s.fresh = false })
				s.start(0)
				wait(time.Second)
				s.leavesBy("another daemon", app, tt.nic)
				s.stop(true)
			})
		})
	}
}

// A rebind that fails leaves the container held, as it was.
func TestFailedRebindOfAHeldContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, app := rebound(t)
		s.do(func() { s.faults.table = true })
		if _, err := s.daemon.loop.Rebind(t.Context(), "app", map[string]string{"eip.nic": "eth2"}); err == nil {
			t.Error("rebound though the table could not be written")
		}
		s.do(func() { s.faults.table = false })
		wait(time.Minute)
		s.leavesBy("after it", app, "")
		s.stop(true)
	})
}

// A network's record is lost, those of its endpoints and other networks are
// there: what runs goes on, its connections too.
func TestLostNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ours, theirs := twoWays(t)
		now := flow{ours.at[0].endpoint, ours.at[0].addr, netip.MustParseAddr("172.31.0.14")}
		s.stop(true)
		s.do(func() {
			s.kernel.flows[now] = true
			delete(s.disk.networks, ours.at[0].network.id)
			s.lost = true
		})
		s.start(0)
		wait(time.Minute)
		s.leavesBy("lost", ours, "eth1")
		s.leavesBy("lost", theirs, "eth2")
		s.do(func() {
			if !s.kernel.flows[now] {
				t.Error("a connection of it was forgotten")
			}
		})
		s.engine.end(ours, true)
		s.engine.removeNetwork("net0")
		s.do(func() { s.lost = false })
		s.poke()
		wait(time.Second)
		s.do(func() {
			if got := s.kernel.table.Sources; len(got) != 1 || len(s.disk.endpoints) > 0 {
				t.Errorf("left: sources %+v, endpoints %v", got, s.disk.endpoints)
			}
		})
		s.stop(true)
	})
}
