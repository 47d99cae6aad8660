package snat

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTables: what is left of a dead Manager is found and removed, and nothing else.
func TestTables(t *testing.T) {
	ns := newNamespace(t)
	tables, err := NewTables(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	look := func(want ...string) []Table {
		t.Helper()
		list, err := tables.List()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range list {
			got = append(got, l.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("tables (-want +got):\n%s", diff)
		}
		return list
	}
	look()
	if pinned, err := tables.Pinned(); err != nil || len(pinned) > 0 {
		t.Errorf("pinned without a table: %v, %v", pinned, err)
	}
	if err := tables.Remove(t.Context()); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	ns.nft(t, "table ip eipnet { }\ntable inet other { }\n")
	foreign := ns.run(t, "nft list ruleset")
	m := newManager(t, ns)
	apply(t, m, sample(), true, true)
	if _, err := m.ApplyBridge(t.Context(), []BridgePort{{Bridge: "b", Name: "p", MAC: "02:00:00:00:00:01"}}, true); err != nil {
		t.Fatal(err)
	}
	for _, l := range look("table inet eipnet", "table bridge eipnet") {
		if m.Owned() != (l.Owner != 0) {
			t.Errorf("%v has the owner %d", l, l.Owner)
		}
	}
	pinned, err := tables.Pinned()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(pinned, netip.Addr.Compare)
	var got []string
	for _, a := range pinned {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"172.17.0.5", "172.19.0.100", "172.19.0.101", "fd00:19::101"}, got); diff != "" {
		t.Errorf("pinned (-want +got):\n%s", diff)
	}
	if err := tables.Remove(t.Context()); m.Owned() && err == nil {
		t.Error("tables of a living owner were removed")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tables.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	look()
	if diff := cmp.Diff(strings.Split(foreign, "\n"), strings.Split(ns.run(t, "nft list ruleset"), "\n")); diff != "" {
		t.Errorf("what is not ours was touched (-before +after):\n%s", diff)
	}
}
