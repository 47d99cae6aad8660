package snat

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

// TestInternal: from an internal network, ours or Docker's, nothing is reached
// but its siblings, published ports at its own bridge's address neither.
func TestInternal(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.container, 8080)
	serve(t, l.sibling, 8080)
	serve(t, l.stock, 8080)
	c, s := l.container, l.stock
	for _, step := range []struct {
		name     string
		internal []string
		calls    []call
	}{
		{"none", nil, []call{
			{name: "Docker's to a port of ours at its own bridge's address", ns: s, from: "172.20.0.3", to: "172.20.0.1", port: 8092, seen: "172.19.0.1"},
			{name: "ours to a port of Docker's", ns: c, from: "172.19.0.100", to: "172.31.0.8", port: 9003, seen: "172.19.0.100"},
		}},
		{"Docker's", []string{"docker0"}, []call{
			{name: "to a port of ours at its own bridge's address", ns: s, from: "172.20.0.3", to: "172.20.0.1", port: 8092, err: errTimeout, counter: CounterIsolated},
			{name: "to a port of ours at a NIC's address", ns: s, from: "172.20.0.3", to: "172.31.0.8", port: 8090, err: errTimeout, counter: CounterIsolated},
			{name: "ours to it", ns: c, from: "172.19.0.100", to: "172.31.0.8", port: 9003, err: errTimeout, counter: CounterIsolated},
		}},
		{"ours", []string{"eip_bridge"}, []call{
			{name: "to a port of Docker's", ns: c, from: "172.19.0.100", to: "172.31.0.8", port: 9003, err: errTimeout, counter: CounterIsolated},
			{name: "to a sibling", ns: c, from: "172.19.0.100", to: "172.19.0.120", port: 8080, seen: "172.19.0.100"},
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			l.fw.Internal = step.internal
			apply(t, l.m, l.fw, true, step.internal != nil)
			l.calls(t, step.calls)
		})
	}
}

// TestTableLost: where FORWARD refuses, everything passes that may; and with the
// table deleted and no daemon, nothing gets from Docker's networks into ours.
func TestTableLost(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.world, 80)
	serve(t, l.container, 8080)
	serve(t, l.sibling, 8080)
	serve(t, l.stock, 8080)
	serve(t, l.host, 22)
	serveAt(t, l.host, "127.0.0.1:8094")
	serveAt(t, l.host, "[::1]:8094")
	for _, tool := range []string{"iptables", "ip6tables"} {
		l.host.run(t, tool+" -N DOCKER-USER", tool+" -A FORWARD -j DOCKER-USER", tool+" -P FORWARD DROP",
			tool+" -A FORWARD -i docker0 -j ACCEPT", tool+" -A FORWARD -o docker0 -j ACCEPT") // as Docker does
	}
	applyDockerUser(t, l.host, newDockerUser(t, l.host), true, "eip_bridge")
	l.calls(t, slices.Concat(l.outward(), l.inward(), l.inside(), l.watched()))
	if err := l.m.Close(); err != nil {
		t.Fatal(err)
	}
	l.host.run(t, "nft delete table inet eipnet")
	for _, as := range []func(string) string{strings.Clone, six} {
		from, to := as("172.20.0.3"), net.JoinHostPort(as("172.19.0.100"), "8080")
		if seen, err := ask(t, l.stock, from, to, silence); !errors.Is(err, errTimeout) {
			t.Errorf("%s from %s to %s: seen as %q, error %v", "without the table", from, to, seen, err)
		}
		if seen, err := ask(t, l.container, as("172.19.0.100"), net.JoinHostPort(as("172.19.0.120"), "8080"), patience); seen != as("172.19.0.100") || err != nil {
			t.Errorf("a sibling: seen as %q, error %v", seen, err)
		}
	}
}
