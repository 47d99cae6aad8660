package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestStatusTellsOfRebind: that a container's NIC comes from eipnet rebind, and
// not from what it was run with, is in both forms; and the ports' arrow stays one.
func TestStatusTellsOfRebind(t *testing.T) {
	e := api.Endpoint{Container: "web", State: plan.StatePinned, NIC: "eth2", From: model.FromRebind, Ports: []string{"172.31.0.21:8090->8080/tcp"}}
	over := e
	over.NIC, over.InsteadOf = "eth3", "eip.nic=eth2"
	label := e
	label.From = model.FromLabel
	for want, e := range map[string]api.Endpoint{"eth2 (by rebind)": e, "eth3 (for eth2, by rebind)": over, "eth2": label} {
		if got := nicOf(e); got != want {
			t.Errorf("%s: %q, want %q", e.From, got, want)
		}
	}
	var text, document bytes.Buffer
	s := api.Status{Endpoints: []api.Endpoint{e}}
	if err := printStatus(&text, s); err != nil || !strings.Contains(text.String(), "eth2 (by rebind)") {
		t.Errorf("%v:\n%s", err, text.String())
	}
	if err := printJSON(&document, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"from": "rebind"`, `8090->8080/tcp`} {
		if !strings.Contains(document.String(), want) {
			t.Errorf("no %s in\n%s", want, document.String())
		}
	}
}
