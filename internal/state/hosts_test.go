package state

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
)

func TestHostEntries(t *testing.T) {
	s, path := newFile(t)
	ok(t, s.DeleteHostEntry("absent"))
	mustClose(t, s)
	s = mustOpen(t, path) // a file of before there were any
	web := model.HostEntry{
		Name: "web", Bridge: "br-web", Address: netip.MustParseAddr("172.19.0.100"), Options: map[string]string{"eip.nic": "eth1"},
		Publishes: []model.Publish{{Proto: model.TCP, HostPort: 80, Port: 8080}}, File: "web.json", Leaving: true,
	}
	ok(t, s.PutHostEntry(web))
	got := s.HostEntries()[0]
	got.Options["eip.nic"], got.Publishes[0].Port = "spoilt", 1
	mustClose(t, s)

	s = mustOpen(t, path)
	defer mustClose(t, s)
	if d := cmp.Diff([]model.HostEntry{web}, s.HostEntries(), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("after a restart (-want +got):\n%s", d)
	}
	ok(t, s.DeleteHostEntry("web"))
	if all := s.HostEntries(); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
}
