package snat

import "testing"

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
