package events

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
)

// TestTwoPatches: two containers come up while a list is being made that saw
// neither: both stay.
func TestTwoPatches(t *testing.T) {
	s := &session{Watcher: New(Options{}), fast: newFastPath()}
	stock := network{Network: Network{ID: net1, Driver: "bridge"}}
	empty := func() *View {
		return &View{Containers: map[string]model.Container{}, Networks: map[string]Network{net1: stock.Network}}
	}
	s.publish(empty(), s.fast.tick())
	begun := s.fast.tick()
	attached := make(map[string]attachment)
	for endpoint, container := range map[string]string{end1: con1, end2: con2} {
		attached[container] = attachment{endpointID: endpoint, addr4: netip.MustParseAddr("172.19.0.2")}
		fresh := map[string]told{endpoint: {container: model.Container{Known: true, ID: container}}}
		s.patch(patch{begun: s.fast.tick(), network: stock, attached: attached, fresh: fresh})
	}
	s.publish(empty(), begun)
	for _, id := range []string{end1, end2} {
		if !slices.ContainsFunc(s.View().Endpoints, func(e model.Endpoint) bool { return e.ID == id && e.Container.Known }) {
			t.Errorf("the list took %s away: %+v", id, s.View().Endpoints)
		}
	}
}

// TestPatchByStaleName: whose endpoint it is a list knows better than a name
// that was remembered.
func TestPatchByStaleName(t *testing.T) {
	stock := network{Network: Network{ID: net1, Driver: "bridge"}}
	right := model.Container{Known: true, ID: con2, Labels: map[string]string{"eip.nic": "eth1"}}
	v := &View{
		Containers: map[string]model.Container{end1: right}, Networks: map[string]Network{net1: stock.Network},
		Endpoints: []model.Endpoint{{ID: end1, NetworkID: net1, Container: right}},
	}
	patch{
		network:  stock,
		attached: map[string]attachment{joinPrefix + end1: {endpointID: end1, name: "web", addr4: netip.MustParseAddr("172.19.0.2")}},
		fresh:    map[string]told{end1: {container: model.Container{Known: true, ID: con1, Labels: map[string]string{"eip.nic": "eth0"}}}},
	}.apply(v)
	if len(v.Endpoints) != 1 || v.Endpoints[0].Container.ID != con2 || v.Containers[end1].ID != con2 {
		t.Errorf("endpoints %+v, containers %v", v.Endpoints, v.Containers)
	}
}

// TestDistrust: a name counts for a container that was never started only as
// long as no event can have been missed.
func TestDistrust(t *testing.T) {
	c := newCache()
	c.see(event{kind: "container", action: "create", id: con1, attributes: map[string]string{"name": "web", "eip.nic": "eth0"}})
	if _, ok := c.name("web"); !ok || !c.labelled() {
		t.Error("not remembered")
	}
	c.distrust()
	if l, ok := c.name("web"); ok {
		t.Errorf("web is still %v", l)
	}
	c.begin()
	c.end([]listed{{id: con1, name: "web", labels: map[string]string{"eip.nic": "eth0"}, running: true}})
	if c.labelled() {
		t.Error("a container that runs is about to run")
	}
}

// TestOurs: endpoints on a network of ours follow what is asked about it, and
// stay where Docker cannot tell.
func TestOurs(t *testing.T) {
	ours := network{Network: Network{ID: net1, Driver: "eipnet"}}
	v := &View{
		Containers: map[string]model.Container{}, Networks: map[string]Network{net1: ours.Network, net2: {ID: net2, Driver: "eipnet"}},
		Ours: map[string]string{end1: net1, "end3": net2},
	}
	before := v.clone()
	patch{network: ours, attached: map[string]attachment{con2: {endpointID: end2}, joinPrefix + "end4": {endpointID: "end4"}}}.apply(v)
	if want := map[string]string{end2: net1, "end3": net2}; !maps.Equal(v.Ours, want) {
		t.Errorf("ours %v, want %v", v.Ours, want)
	}
	unlisted := &View{Containers: map[string]model.Container{}, Ours: map[string]string{}}
	unlisted.keep(before, net1)
	if want := map[string]string{end1: net1}; !maps.Equal(unlisted.Ours, want) {
		t.Errorf("kept %v, want %v", unlisted.Ours, want)
	}
}

// TestNamesOfAnEarlierSession: what was created while Docker was followed before
// is not told by its name any more.
func TestNamesOfAnEarlierSession(t *testing.T) {
	d := newDocker(t)
	w := run(t, d.host())
	w.untilUp()
	d.addContainer(con1, "web", pinned)
	w.cacheHas(con1)
	d.stop()
	w.until("docker to be away", func() bool { return !w.Up() })
	if _, ok := w.cache.name("web"); !ok {
		t.Fatal("not remembered")
	}
	d.change(func() { delete(d.containers, con1) })
	held := d.gate(allContainers)
	d.start()
	<-held.reached // the new session's first list
	if l, ok := w.cache.name("web"); ok {
		t.Errorf("web is still %v", l)
	}
}
