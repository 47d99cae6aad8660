package events

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

func TestContainerFromCreateEvent(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	d.addContainer(con1, "app", map[string]string{"eip.nic": "eth1", "name": "lies", "x": "y"})
	d.attach(net1, "ep-"+end1, end1, "app")
	w.imageKnown(con1)
	lists := d.count("/containers/json")
	got, err := w.Container(t.Context(), net1, end1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(model.Container{Known: true, ID: con1, Name: "app", Labels: pinned}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := d.count("/containers/json"); n != lists {
		t.Errorf("%d lists of containers, want %d", n, lists)
	}
	got.Labels["eip.nic"] = "spoilt"
	if again, _ := w.Container(t.Context(), net1, end1); again.Labels["eip.nic"] != "eth1" {
		t.Error("the cache's labels were handed out")
	}
}

// cacheHas waits for an event to have arrived: nothing is poked for a create.
func (r *running) cacheHas(id string) {
	r.t.Helper()
	r.eventually("event of "+id, func() bool { _, ok := r.cache.id(id); return ok })
}

// imageKnown waits for what is asked early about a container with labels.
func (r *running) imageKnown(id string) {
	r.t.Helper()
	r.eventually("image of "+id, func() bool {
		l, _ := r.cache.id(id)
		_, ok := r.images.get(l.image)
		return ok
	})
}

func (r *running) eventually(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if holds() {
			return
		}
	}
	r.t.Fatalf("not in time: %s", what)
}

// TestNameUsedAgain: the labels of a container that is gone never reach the one
// that took its name, not even when the events of the change are late.
func TestNameUsedAgain(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	d.addContainer(con1, "app", pinned)
	d.emit("container", "start", con1, map[string]string{"name": "app", "eip.nic": "eth1"})
	d.change(func() { // removed, and made again: no event has come yet
		delete(d.containers, con1)
		d.containers[con2] = object{"Id": con2, "Names": []string{"/app"}, "Labels": object{"eip.nic": "eth2"}, "State": "created"}
	})
	d.attach(net1, "ep-"+end2, end2, "app")
	d.emit("network", "connect", net1, nil) // the events before it are through
	w.until("listed", func() bool { return w.View().Containers[end2].Known })
	got, err := w.Container(t.Context(), net1, end2)
	if err != nil || got.ID != con2 || got.Labels["eip.nic"] != "eth2" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestContainerAsksByName(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	d.addContainer(con1, "a.b", pinned)
	d.addContainer(con2, "axb", nil)
	d.change(func() { d.containers[con1]["State"], d.containers[con2]["State"] = "exited", "exited" })
	w := run(t, d.host())
	w.untilUp()
	d.attach(net1, "ep-"+end1, end1, "a.b")
	got, err := w.Container(t.Context(), net1, end1)
	if err != nil || got.ID != con1 || got.Labels["eip.nic"] != "eth1" {
		t.Errorf("%+v, %v", got, err)
	}
	if want := `filters={"name":{"^/?a\\.b$":true}}`; d.count(escape(want)) != 1 {
		t.Errorf("no request with %s: %q", want, d.requests)
	}
	if n := d.count("/containers/" + con1); n > 0 {
		t.Errorf("%d questions by id", n)
	}
}

func escape(s string) string {
	r := strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22", ":", "%3A", "^", "%5E", "/", "%2F", "?", "%3F", `\`, "%5C", "$", "%24")
	key, value, _ := strings.Cut(s, "=")
	return key + "=" + r.Replace(value)
}

func TestContainerUnknown(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	d.attach(net1, "ep-"+end2, end2, "nobody")
	w := run(t, d.host())
	w.untilUp()
	for name, ask := range map[string][2]string{
		"no network":   {net2, end1},
		"no endpoint":  {net1, end1},
		"no container": {net1, end2},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := w.Container(t.Context(), ask[0], ask[1]); !errors.Is(err, ErrUnknown) {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

func TestRename(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	d.addContainer(con1, "old", pinned)
	d.addContainer(con2, "other", nil)
	w.cacheHas(con2)
	d.change(func() { d.containers[con1]["Names"] = []string{"/new"} })
	d.emit("container", "rename", con1, map[string]string{"name": "new", "oldName": "/old", "eip.nic": "eth1"})
	w.until("renamed", func() bool { l, _ := w.cache.id(con1); return l.name == "new" })
	w.imageKnown(con1)
	lists := d.count("name%22")
	d.attach(net1, "ep-"+end1, end1, "new")
	if got, err := w.Container(t.Context(), net1, end1); err != nil || got.ID != con1 || got.Name != "new" {
		t.Errorf("%+v, %v", got, err)
	}
	if n := d.count("name%22"); n != lists {
		t.Error("asked for what the events told")
	}
	d.attach(net1, "ep-"+end2, end2, "old")
	if got, err := w.Container(t.Context(), net1, end2); !errors.Is(err, ErrUnknown) {
		t.Errorf("%+v, %v", got, err)
	}
}
