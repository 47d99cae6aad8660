package events

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

// TestBeside: on which networks containers are out of reach, by driver.
func TestBeside(t *testing.T) {
	for driver, want := range map[string]bool{
		"bridge": false, "host": false, "null": false, "overlay": false,
		"eipnet": false, "eipnet:latest": false, "eipnet/eipnet:latest": false, "registry:5000/me/eipnet:0.1": false,
		"macvlan": true, "ipvlan": true, "weave": true, "weaveworks/net-plugin:latest_release": true, "eipnet/other:latest": true,
	} {
		for _, internal := range []bool{false, true} {
			if got := (network{Network: Network{Driver: driver}, internal: internal, parent: "eth0"}).beside(); got != want {
				t.Errorf("%s, internal %v: %v", driver, internal, got)
			}
		}
	}
	for _, driver := range []string{"macvlan", "ipvlan"} {
		if (network{Network: Network{Driver: driver}}).beside() {
			t.Errorf("%s without a parent cannot leave the host", driver)
		}
	}
}

// TestBesides: all containers of such networks are told, as others than the
// label may have pinned them. Those of a network that Docker cannot tell of stay.
func TestBesides(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "eip", "Driver": "eipnet"})
	d.addNetwork("lan", object{"Name": "lan", "Driver": "macvlan", "Options": object{"parent": "eth0"}, "Labels": object{"eip.nic": "eth2", "other": "x"}})
	d.addNetwork("alone", object{"Name": "alone", "Driver": "macvlan", "Internal": true})
	d.addContainer(con1, "app", pinned)
	d.addContainer(con2, "plain", nil)
	d.attach(net1, con1, end1, "app")
	d.attach("alone", con1, "end-alone", "app")
	d.attach("lan", con1, "end-app", "app")
	d.attach("lan", "ep-end-plain", "end-plain", "plain")
	d.attach("lan", "ep-end-gone", "end-gone", "nobody")
	w := run(t, d.host())
	w.untilUp()
	lan := model.Beside{NetworkID: "lan", Network: "lan", Driver: "macvlan", Labels: map[string]string{"eip.nic": "eth2"}}
	app, plain := lan, lan
	app.Container = model.Container{Known: true, ID: con1, Name: "app", Labels: pinned}
	plain.Container = model.Container{Known: true, ID: con2, Name: "plain"}
	want := []model.Beside{app, plain}
	if con2 < con1 {
		slices.Reverse(want)
	}
	if diff := cmp.Diff(want, w.View().Beside); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if strays := w.View().Strays; len(strays) > 0 {
		t.Errorf("strays %v", strays)
	}

	d.change(func() { d.failing["/networks/lan"] = 500 })
	d.emit("network", "create", net2, nil)
	w.until("a list", func() bool { return w.View().Networks["lan"].Unlisted })
	if diff := cmp.Diff(want, w.View().Beside); diff != "" {
		t.Errorf("not listed (-want +got):\n%s", diff)
	}
	d.change(func() { delete(d.failing, "/networks/lan"); delete(d.networks, "lan") })
	d.emit("network", "remove", "lan", nil)
	w.until("a list without it", func() bool { return len(w.View().Beside) == 0 })
}
