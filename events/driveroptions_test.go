package events

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// given attaches a container to a network with driver options that only it tells.
func (d *dockerServer) given(network, id, endpoint, name string, options object) {
	d.attachWith(network, id, object{"EndpointID": endpoint, "Name": name, "MacAddress": "", "IPv4Address": "172.19.0.2/16", "IPv6Address": "", "given": options})
	d.emit("network", "connect", network, map[string]string{"container": id, "type": "bridge"})
}

func (d *dockerServer) setRunning(id, name string) {
	d.set(id, "State", "running")
	d.emit("container", "start", id, map[string]string{"name": name})
}

// optionsOf are an endpoint's options in the view.
func (r *running) optionsOf(id string) map[string]string {
	e, _ := r.endpoint(id)
	return e.Options
}

// TestDriverOptions: options that no list tells are asked for once, and not
// before the container's start is over.
func TestDriverOptions(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	w := run(t, d.host())
	w.untilUp()
	d.addContainer(con1, "app", nil)
	d.given(net1, con1, end1, "app", object{"eip.nic": "eth2", "com.example": "x"})
	w.untilEndpoint(end1)
	if n := d.count("/containers/" + con1); n > 0 || len(w.optionsOf(end1)) > 0 {
		t.Errorf("asked %d times while it is being started, and told %v", n, w.optionsOf(end1))
	}
	d.setRunning(con1, "app")
	want := map[string]string{"eip.nic": "eth2"}
	w.until("the endpoint's options", func() bool { return cmp.Equal(want, w.optionsOf(end1)) })
	w.until("that to be urgent", func() bool { return w.urges.Load() > 0 })

	d.addContainer(con2, "plain", nil)
	d.given(net1, con2, end2, "plain", nil)
	d.setRunning(con2, "plain")
	w.until("both to be asked about", func() bool {
		d.emit("container", "rename", con2, map[string]string{"name": "plain"}) // one more list
		return d.count("/containers/"+con2) > 0
	})
	at := w.View().At
	for range 3 {
		d.emit("container", "rename", con2, map[string]string{"name": "plain"})
		w.until("one more list", func() bool { return w.View().At != at })
		at = w.View().At
	}
	if one, two := d.count("/containers/"+con1), d.count("/containers/"+con2); one != 1 || two != 1 {
		t.Errorf("asked %d and %d times, want once", one, two)
	}
	if got := w.optionsOf(end1); !cmp.Equal(want, got) {
		t.Errorf("later the options are %v", got)
	}
	if got := w.optionsOf(end2); len(got) > 0 {
		t.Errorf("the other one's are %v", got)
	}
	// A network more while it runs, with options of its own.
	d.addNetwork(net2, object{"Name": "late", "Driver": "bridge"})
	d.given(net2, con2, "end9", "plain", object{"eip.nic": "eth1"})
	w.until("the late options", func() bool { return w.optionsOf("end9")["eip.nic"] == "eth1" })
}

// TestDriverOptionsFirst: the first view has the options of what runs already.
func TestDriverOptionsFirst(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	d.addContainer(con1, "app", nil)
	d.given(net1, con1, end1, "app", object{"eip.nic": "eth2"})
	d.set(con1, "State", "running")
	d.addContainer(con2, "broken", nil)
	d.given(net1, con2, end2, "broken", object{"eip.nic": "eth2"})
	d.set(con2, "State", "running")
	d.change(func() { d.failing["/containers/"+con2+"/json"] = http.StatusForbidden })
	w := run(t, d.host())
	w.untilUp()
	if got := w.optionsOf(end1); got["eip.nic"] != "eth2" {
		t.Errorf("the first view has options %v", got)
	}
	if got := w.optionsOf(end2); len(got) > 0 {
		t.Errorf("of a container that Docker does not tell of: %v", got)
	}
}

// TestDriverOptionsHang: a container that Docker does not answer about delays nobody.
func TestDriverOptionsHang(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	w := run(t, d.host())
	w.untilUp()
	g := d.gate("GET /containers/" + con1 + "/json?")
	d.addContainer(con1, "hangs", nil)
	d.given(net1, con1, end1, "hangs", object{"eip.nic": "eth2"})
	d.setRunning(con1, "hangs")
	<-g.reached
	d.addContainer(con2, "app", nil)
	d.given(net1, con2, end2, "app", object{"eip.nic": "eth1"})
	d.setRunning(con2, "app")
	w.until("the other one's options", func() bool { return w.optionsOf(end2)["eip.nic"] == "eth1" })
	if len(w.optionsOf(end1)) > 0 {
		t.Error("the question that hangs was answered")
	}
	g.open()
	w.until("its options, once Docker answers", func() bool { return w.optionsOf(end1)["eip.nic"] == "eth2" })
}
