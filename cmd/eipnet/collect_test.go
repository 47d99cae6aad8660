package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/events"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/state"
)

// A record that the state has lost, of a network or of an endpoint, counts
// until Docker has the thing no more; what comes later does not.
func TestLost(t *testing.T) {
	store, _, err := state.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, err := range []error{
		store.PutNetwork(model.Network{ID: "known", Bridge: "eip0"}),
		store.PutEndpoint(model.Endpoint{ID: "e-known", NetworkID: "known", Phase: model.Joined}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	view := &events.View{
		Networks: map[string]events.Network{
			"known": {ID: "known", Name: "net0", Driver: "eipnet"},
			"gone":  {ID: "gone", Name: "net1", Driver: "eipnet:latest"},
			"stock": {ID: "stock", Name: "net2", Driver: "bridge"},
		},
		Containers: map[string]model.Container{
			"e-known": {Known: true, ID: "c1", Name: "one"},
			"e-lost":  {Known: true, ID: "c2", Name: "two"},
			"e-image": {ID: "c3", Name: "three"},             // its image cannot be read
			"e-ghost": {Name: "four"},                        // its container is gone
			"e-gone":  {Known: true, ID: "c5", Name: "five"}, // its network is told
			"e-stock": {Known: true, ID: "c6", Name: "six"},
		},
		Ours: map[string]string{"e-known": "known", "e-lost": "known", "e-image": "known", "e-ghost": "known", "e-gone": "gone"},
	}
	l := &lost{}
	check := func(when string, want ...string) {
		t.Helper()
		l.look(view, store)
		got := make(map[string]bool)
		for _, p := range l.problems() {
			got[p.Subject] = true
			if p.Code == model.CodeEndpointLost && (!strings.Contains(p.Text, "net0") || p.Fix != "docker restart "+p.Subject) {
				t.Errorf("%s: problem %v", when, p)
			}
		}
		for _, subject := range want {
			if !got[subject] {
				t.Errorf("%s: no problem about %s", when, subject)
			}
		}
		if len(got) != len(want) || l.any() != (len(want) > 0) {
			t.Errorf("%s: problems about %v, want %v; any: %v", when, got, want, l.any())
		}
	}
	check("at the start", "network net1", "two", "three")
	view.Networks["new"] = events.Network{ID: "new", Name: "new", Driver: "eipnet"}
	view.Ours["e-new"], view.Containers["e-new"] = "known", model.Container{Known: true, ID: "c7", Name: "seven"}
	delete(view.Networks, "gone")
	delete(view.Ours, "e-image")
	check("later", "two")
	delete(view.Ours, "e-lost")
	check("restarted")
}
