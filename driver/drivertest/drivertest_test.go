package drivertest_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/driver/drivertest"
	"github.com/eipnet/eipnet/internal/model"
)

func TestStoreKeepsCopiesAndReferences(t *testing.T) {
	s := drivertest.New().Store
	if err := s.PutEndpoint(model.Endpoint{ID: "e", NetworkID: "n"}); err == nil {
		t.Error("an endpoint of a network that is not stored was taken")
	}
	options := map[string]string{"eip.nic": "eth1"}
	if err := errors.Join(s.PutNetwork(model.Network{ID: "n"}), s.PutEndpoint(model.Endpoint{ID: "e", NetworkID: "n", Options: options})); err != nil {
		t.Fatal(err)
	}
	options["eip.nic"] = "eth2"
	e, _ := s.Endpoint("e")
	e.Options["eip.nic"] = "eth3"
	if got := s.Endpoints()[0].Options["eip.nic"]; got != "eth1" {
		t.Errorf("stored option changed to %s", got)
	}
	if err := errors.Join(s.DeleteEndpoint("e"), s.DeleteEndpoint("e"), s.DeleteNetwork("absent"), s.UpdateEndpoint("e", nil)); err != nil {
		t.Error(err)
	}
}

func TestCoreMakesBridgesAndReservesPorts(t *testing.T) {
	w := drivertest.New()
	veth := driver.Veth{Host: "h", Peer: "p", Bridge: "b"}
	if err := w.Links.AddVeth(t.Context(), veth); err == nil {
		t.Error("a veth was put on a bridge that is not there")
	}
	publishes := []model.Publish{{Proto: model.TCP, HostPort: 80, Port: 80}}
	if err := errors.Join(
		w.Store.PutNetwork(model.Network{ID: "n", Bridge: "b"}),
		w.Store.PutEndpoint(model.Endpoint{ID: "second", NetworkID: "n", Publishes: publishes}),
		w.Core.Sync(t.Context()),
		w.Store.PutEndpoint(model.Endpoint{ID: "first", NetworkID: "n", Publishes: publishes}),
		w.Core.Sync(t.Context()),
		w.Links.AddVeth(t.Context(), veth),
	); err != nil {
		t.Fatal(err)
	}
	if first, second := w.Core.PortError("first"), w.Core.PortError("second"); first == nil || second != nil {
		t.Errorf("port errors: %v; of who was there before: %v", first, second)
	}
	if err := w.Store.DeleteEndpoint("second"); err != nil {
		t.Fatal(err)
	}
	w.Core.Fail(errors.New("once"))
	if first, second := w.Core.Sync(t.Context()), w.Core.Sync(t.Context()); first == nil || second != nil {
		t.Errorf("passes: %v, %v", first, second)
	}
	if err := w.Core.PortError("first"); err != nil {
		t.Errorf("a port that became free: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.Core.Hang(1)
	w.Labels.Set(true, true)
	if err := w.Core.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("hung pass: %v", err)
	}
	if _, err := w.Labels.Container(ctx, "n", "e"); !errors.Is(err, context.Canceled) {
		t.Errorf("hung question: %v", err)
	}
}

func TestCoreFailsForWhoAsks(t *testing.T) {
	w := drivertest.New()
	if err := errors.Join(w.Store.PutNetwork(model.Network{ID: "n", Bridge: "b"}), w.Store.PutNetwork(model.Network{ID: "m", Bridge: "c"})); err != nil {
		t.Fatal(err)
	}
	w.Core.Break("b", errors.New("busy"))
	if whole, b, c := w.Core.Sync(t.Context()), w.Core.Sync(t.Context(), "c", "b"), w.Core.Sync(t.Context(), "c"); whole != nil || b == nil || c != nil {
		t.Errorf("about nothing: %v; about both: %v; about the other: %v", whole, b, c)
	}
	if got := w.Core.Bridges(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("bridges %v", got)
	}
	if err := w.Store.DeleteNetwork("m"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} { // the pass that deletes a bridge has seen it
		if err := w.Core.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if host, _ := w.Core.Host(t.Context()); slices.Contains(host.Links, "c") != want {
			t.Errorf("links %v", host.Links)
		}
	}
}
