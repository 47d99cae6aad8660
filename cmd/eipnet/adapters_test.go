package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/events"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// The loop's ports become the driver's claims, and its errors the ports'.
func TestReservations(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := netip.MustParseAddrPort(l.Addr().String()).Port()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	port := func(endpoint, to string) plan.Port {
		return plan.Port{Endpoint: endpoint, Forward: plan.Forward{Proto: model.TCP, Addr: loopback, Port: free, To: netip.MustParseAddrPort(to)}}
	}
	sockets := driver.NewReserver(nil)
	t.Cleanup(sockets.Close)
	r := reservations{sockets}
	text := "Bind for " + netip.AddrPortFrom(loopback, free).String() + " failed: port is already allocated"
	first, again, other := port("a", "172.19.0.2:80"), port("a", "172.19.0.2:81"), port("b", "172.19.0.3:80")
	for name, tt := range map[string]struct{ want, refused []plan.Port }{
		"one":       {[]plan.Port{first}, nil},
		"twice":     {[]plan.Port{first, again}, []plan.Port{again}},
		"two":       {[]plan.Port{first, other}, []plan.Port{other}},
		"identical": {[]plan.Port{first, first}, []plan.Port{first}},
	} {
		refused := make(map[plan.Port]string)
		for p, err := range r.Set(tt.want) {
			refused[p] = err.Error()
		}
		want := make(map[plan.Port]string)
		for _, p := range tt.refused {
			want[p] = text
		}
		if diff := cmp.Diff(want, refused, cmp.Comparer(func(a, b plan.Port) bool { return a == b })); diff != "" {
			t.Errorf("%s: refused (-want +got)\n%s", name, diff)
		}
	}
}

// Docker does not tell the driver of a network's labels.
func TestNetworkLabels(t *testing.T) {
	labels := map[string]string{"eip.nic": "eth1"}
	view := &events.View{Networks: map[string]events.Network{
		"a": {ID: "a", Name: "ours", Driver: "eipnet:latest", Labels: labels},
		"b": {ID: "b", Name: "plain", Driver: "eipnet"},
		"c": {ID: "c", Name: "strict", Driver: "bridge", Labels: labels},
	}}
	got := networkLabels(view)
	if len(got) != 1 || got[0].Subject != "network ours" || !strings.Contains(got[0].Text, "eip.nic") {
		t.Errorf("problems %v", got)
	}
}
