package events

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

const allContainers = "GET /containers/json?all=1"

func (r *running) endpoint(id string) (model.Endpoint, bool) {
	for _, e := range r.View().Endpoints {
		if e.ID == id {
			return e, true
		}
	}
	return model.Endpoint{}, false
}

func (r *running) untilEndpoint(id string) model.Endpoint {
	r.t.Helper()
	r.until("endpoint "+id, func() bool { _, ok := r.endpoint(id); return ok })
	e, _ := r.endpoint(id)
	return e
}

// TestUrgent: the view has a pinned container at once, which is milliseconds on
// an idle machine, and no full list is needed for it.
func TestUrgent(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	d.addNetwork(net2, object{"Name": "other", "Driver": "bridge"})
	d.addContainer("old", "old", nil)
	d.attach(net1, "old", "end-old", "old")
	d.attach(net2, "old", "end-other", "old")
	w := run(t, d.host())
	w.untilUp()
	at := w.View().At
	d.gate("GET /networks?") // no list from here on
	best := time.Hour
	for i := range 5 {
		id, endpoint, name := fmt.Sprint("con", i), fmt.Sprint("end", i), fmt.Sprint("app", i)
		d.addContainer(id, name, pinned)
		w.cacheHas(id)
		before, start := w.urges.Load(), time.Now()
		d.connect(net1, id, endpoint, name)
		w.until("urgent", func() bool { return w.urges.Load() > before })
		best = min(best, time.Since(start))
		e, ok := w.endpoint(endpoint)
		if !ok || e.Container.Labels["eip.nic"] != "eth1" || e.Phase != model.Joined || !e.Addr4.IsValid() {
			t.Errorf("endpoint %+v", e)
		}
		if diff := cmp.Diff(e.Container, w.View().Containers[endpoint]); diff != "" {
			t.Errorf("(-endpoint's +container's):\n%s", diff)
		}
	}
	if best > time.Second {
		t.Errorf("took %v", best)
	}
	v := w.View()
	if len(v.Endpoints) != 7 || len(v.Stock) != 2 || len(v.Containers) != 7 || v.At != at {
		t.Errorf("view %+v", v)
	}
	// One that left meanwhile goes with the next question.
	d.change(func() { delete(d.networks[net1]["Containers"].(object), "con0") })
	d.addContainer("last", "last", pinned)
	d.connect(net1, "last", "end-last", "last")
	w.untilEndpoint("end-last")
	if _, there := w.endpoint("end0"); there || w.View().Containers["end0"].Known {
		t.Error("an endpoint that is gone is still there")
	}
}

// TestUrgentStrict: on a network with labels all containers are urgent, and
// endpoint options are known.
func TestUrgentStrict(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge", "Labels": object{"eip.nic": "eth1"}})
	w := run(t, d.host())
	w.untilUp()
	d.gate("GET /networks?")
	d.addContainer(con1, "app", nil)
	d.attachWith(net1, con1, object{"EndpointID": end1, "Name": "app", "MacAddress": "", "IPv4Address": "172.19.0.2/16", "IPv6Address": "", "options": object{"eip.nic": "eth2"}})
	d.change(func() { // its events are still under way
		d.containers[con2] = object{"Id": con2, "Names": []string{"/unheard"}, "State": "created"}
	})
	d.attach(net1, con2, end2, "unheard")
	d.emit("network", "connect", net1, map[string]string{"container": con1, "type": "bridge"})
	if e := w.untilEndpoint(end1); !e.Container.Known || e.Options["eip.nic"] != "eth2" {
		t.Errorf("endpoint %+v", e)
	}
	if _, there := w.endpoint(end2); there {
		t.Error("a container that nobody asked about is in the view")
	}
	d.emit("network", "connect", net1, map[string]string{"container": con2, "type": "bridge"})
	if e := w.untilEndpoint(end2); !e.Container.Known {
		t.Errorf("endpoint %+v", e)
	}
}

// TestUrgentNewNetwork: compose makes networks and starts containers at once.
func TestUrgentNewNetwork(t *testing.T) {
	d := newDocker(t)
	w := run(t, d.host())
	w.untilUp()
	d.gate("GET /networks?")
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge", "Labels": object{"eip.nic": "eth1"}})
	d.emit("network", "create", net1, map[string]string{"name": "web", "type": "bridge"})
	w.until("the network", func() bool { return len(w.View().Stock) == 1 }) // before anything is on it
	d.addContainer(con1, "app", nil)
	d.connect(net1, con1, end1, "app")
	w.untilEndpoint(end1)
	if v := w.View(); len(v.Stock) != 1 || v.Stock[0].Options["eip.nic"] != "eth1" || v.Networks[net1].Name != "web" {
		t.Errorf("view %+v", v)
	}
}

// TestUrgentOwed: a container on a driver network is urgent only if its labels
// could not be told at Join.
func TestUrgentOwed(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "mine", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	d.gate("GET /networks?")
	d.addContainer(con1, "app", pinned)
	d.attach(net1, con1, end1, "app")
	inspections := d.count("/networks/" + net1)
	d.emit("network", "connect", net1, map[string]string{"container": con1, "type": "eipnet"})
	d.addContainer(con2, "late", pinned)
	w.imageKnown(con2)
	if n := d.count("/networks/" + net1); n != inspections {
		t.Errorf("%d inspections of a driver network", n-inspections)
	}
	if _, err := w.Container(t.Context(), net1, end2); err == nil {
		t.Error("no error")
	}
	d.attach(net1, con2, end2, "late")
	d.emit("network", "connect", net1, map[string]string{"container": con2, "type": "eipnet"})
	w.until("labels", func() bool { return w.View().Containers[end2].Known && w.urges.Load() > 0 })
	if n := w.urges.Load(); n != 1 || len(w.View().Endpoints) > 0 {
		t.Errorf("%d times urgent; endpoints %v", n, w.View().Endpoints)
	}
}

// TestPortUp: a container with labels is in the view before Docker tells of its
// endpoint, under whichever key it is listed then.
func TestPortUp(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge", "Options": object{"com.docker.network.bridge.name": "br-web"}})
	d.addNetwork(net2, object{"Name": "other", "Driver": "bridge"})
	d.addContainer("old", "old", nil)
	d.attach(net1, "old", "end-old", "old")
	w := run(t, d.host())
	w.PortUp("br-web") // nobody listens yet
	w.untilUp()
	d.gate("GET /networks?")
	inspections := func() int { return d.count("/networks/") }
	before := inspections()
	w.PortUp("br-web")
	d.addContainer(con1, "app", pinned)
	w.imageKnown(con1)
	if n := inspections() - before; n > 0 {
		t.Errorf("%d inspections where no container bears labels", n)
	}
	w.PortUp("br-unknown")
	d.attach(net1, "ep-"+end1, end1, "app")
	w.PortUp("br-web")
	if e := w.untilEndpoint(end1); e.Container.ID != con1 || e.Container.Labels["eip.nic"] != "eth1" {
		t.Errorf("endpoint %+v", e)
	}
	d.addContainer(con2, "app2", pinned)
	w.imageKnown(con2)
	d.attach(net1, con2, end2, "app2")
	w.PortUp("br-web")
	if e := w.untilEndpoint(end2); e.Container.ID != con2 || e.Container.Labels["eip.nic"] != "eth1" {
		t.Errorf("endpoint %+v", e)
	}
	if e, there := w.endpoint("end-old"); !there || !e.Container.Known {
		t.Errorf("endpoint %+v", e)
	}
	if n := inspections() - before; n != 2 {
		t.Errorf("%d inspections, want 2", n)
	}
}

// TestNotUrgent: containers and networks that never asked cost nothing.
func TestNotUrgent(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	w := run(t, d.host())
	w.untilUp()
	d.gate("GET /networks?")
	before := d.count("")
	for i := range 100 {
		id := fmt.Sprint("con", i)
		d.addContainer(id, id, nil)
		d.connect(net1, id, "end-"+id, id)
	}
	d.addContainer("marker", "marker", nil)
	w.cacheHas("marker")
	if n := d.count("") - before; n > 1 || w.urges.Load() > 0 { // the list at the gate
		t.Errorf("%d questions, %d times urgent: %q", n, w.urges.Load(), d.requests)
	}
}

// TestUrgentDuringList: a list that was begun before does not take the endpoint
// out of the view again.
func TestUrgentDuringList(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	w := run(t, d.host())
	w.untilUp()
	d.addContainer(con1, "app", pinned)
	w.imageKnown(con1)
	containers := d.gate(allContainers)
	d.emit("network", "create", net2, nil)
	<-containers.reached // the list has asked about the network
	networks := d.gate("GET /networks?")
	d.connect(net1, con1, end1, "app")
	w.untilEndpoint(end1)
	at := w.View().At
	containers.open()
	w.until("the list", func() bool { return w.View().At.After(at) })
	if _, there := w.endpoint(end1); !there {
		t.Error("the list took the endpoint away")
	}
	d.change(func() { d.networks[net1]["Containers"] = object{} })
	networks.open()
	w.until("the next list", func() bool { _, there := w.endpoint(end1); return !there })
}

// TestUrgentAfterList: an answer that is older than a list does not replace it.
func TestUrgentAfterList(t *testing.T) {
	urgent := 0
	s := &session{Watcher: New(Options{Urgent: func() { urgent++ }}), fast: newFastPath()}
	stock := network{Network: Network{ID: net1, Driver: "bridge"}}
	early := patch{begun: s.fast.tick(), network: stock}
	begun := s.fast.tick()
	late := patch{begun: s.fast.tick(), network: stock}
	full := &View{Containers: map[string]model.Container{}, Networks: map[string]Network{net1: stock.Network}, Endpoints: []model.Endpoint{{ID: end1, NetworkID: net1}}}

	s.patch(early) // before the first list there is nothing to replace
	if s.View() != nil {
		t.Error("a view without a list")
	}
	s.publish(full, begun)
	s.patch(early)
	if got := len(s.View().Endpoints); got != 1 {
		t.Errorf("%d endpoints after the early answer", got)
	}
	s.patch(late)
	if got := len(s.View().Endpoints); got != 0 || len(full.Endpoints) != 1 {
		t.Errorf("%d endpoints after the late answer, %d in the view that was shared", got, len(full.Endpoints))
	}
	if urgent != 3 {
		t.Errorf("told %d times", urgent)
	}
	// What was known stays known when a question fails.
	s.publish(full.clone(), s.fast.tick())
	known := told{container: model.Container{Known: true, ID: con1}}
	attached := map[string]attachment{con1: {endpointID: end1, addr4: netip.MustParseAddr("172.19.0.2")}}
	for _, fresh := range []told{known, {container: model.Container{ID: con1}}} {
		s.patch(patch{begun: s.fast.tick(), network: stock, attached: attached, fresh: map[string]told{end1: fresh}})
	}
	if got := s.View().Endpoints; len(got) != 1 || !got[0].Container.Known {
		t.Errorf("endpoints %+v", got)
	}
	s.publish(full.clone(), s.fast.tick())
	if got := len(s.View().Endpoints); got != 1 || len(s.fast.patches) != 0 {
		t.Errorf("%d endpoints, %d patches after the next list", got, len(s.fast.patches))
	}
}

// TestThousandConnects: the events are taken while Docker is silent about the
// network, and few questions are left of them.
func TestThousandConnects(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge", "Labels": object{"eip.nic": "eth1"}})
	w := run(t, d.host())
	w.untilUp()
	before := d.count("/networks/" + net1)
	g := d.gate("GET /networks/" + net1 + "?")
	const n = 1000
	attached := object{}
	for i := range n {
		id := fmt.Sprintf("con%04d", i)
		attached[id] = object{"EndpointID": "end-" + id, "Name": id, "MacAddress": "", "IPv4Address": fmt.Sprintf("172.19.%d.%d/16", i/250, i%250+2), "IPv6Address": ""}
		d.change(func() {
			d.containers[id] = object{"Id": id, "Names": []string{"/" + id}, "Labels": pinned, "State": "created"}
		})
	}
	d.change(func() { d.networks[net1]["Containers"] = attached })
	for id := range attached {
		d.emit("network", "connect", net1, map[string]string{"container": id, "type": "bridge"})
	}
	d.addContainer("marker", "marker", nil)
	w.cacheHas("marker")
	g.open()
	w.until("all endpoints", func() bool {
		known := 0
		for _, e := range w.View().Endpoints {
			if e.Container.Known {
				known++
			}
		}
		return known == n
	})
	for i, e := range w.View().Endpoints {
		if want := fmt.Sprintf("end-con%04d", i); e.ID != want || !e.Container.Known || e.Container.Labels["eip.nic"] != "eth1" {
			t.Fatalf("endpoint %d: %+v", i, e)
		}
	}
	if got := d.count("/networks/"+net1) - before; got > 20 {
		t.Errorf("%d inspections", got)
	}
	if got := d.count("/images/"); got > 5 {
		t.Errorf("%d questions about one image", got)
	}
}

// TestUrgentImageGone: a container that cannot be trusted is told as such.
func TestUrgentImageGone(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	w := run(t, d.host())
	w.untilUp()
	d.gate("GET /networks?")
	d.change(func() { delete(d.images, plainImage) })
	d.addContainer(con1, "app", pinned)
	d.connect(net1, con1, end1, "app")
	if e := w.untilEndpoint(end1); e.Container.Known || len(e.Container.Labels) > 0 {
		t.Errorf("endpoint %+v", e)
	}
}

// TestUrgentIsPoke: who gives no Urgent is poked.
func TestUrgentIsPoke(t *testing.T) {
	pokes := 0
	New(Options{Poke: func() { pokes++ }}).urgent()
	if pokes != 1 {
		t.Errorf("%d pokes", pokes)
	}
}
