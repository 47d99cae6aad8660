package snat

import (
	"errors"
	"syscall"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestLoopback publishes on the host's loopback: the host's own processes reach
// the port, and nobody gets into the host's loopback by the route_localnet that
// it takes.
func TestLoopback(t *testing.T) {
	l := newLab(t, false)
	serve(t, l.container, 8080)
	serveAt(t, l.host, "127.0.0.9:7777") // the host's own service
	serveAt(t, l.host, "[::1]:8092")
	l.host.run(t, "sysctl -qw net.ipv4.conf.eip_bridge.route_localnet=1")
	l.fw.Forwards = append(l.fw.Forwards, plan.Forward{Proto: model.TCP, Addr: addr("127.0.0.9"), Port: 8095, To: addrPort("172.19.0.101:8080")})
	apply(t, l.m, l.fw, true, true)

	for name, to := range map[string]string{"published on the loopback": "127.0.0.9:8095", "published on all addresses": "127.0.0.1:8092"} {
		if seen, err := ask(t, l.host, "", to, patience); seen != "172.19.0.1" || err != nil {
			t.Errorf("%s: seen as %q, error %v", name, seen, err)
		}
	}
	if seen, err := ask(t, l.host, "", "[::1]:8092", patience); seen != "::1" || err != nil {
		t.Errorf("IPv6's loopback stays with who listens there: seen as %q, error %v", seen, err)
	}

	// A container that routes a loopback address to its gateway, and a neighbour
	// of a device on which somebody has switched route_localnet on.
	l.host.run(t, "sysctl -qw net.ipv4.conf.virbr0.route_localnet=1")
	for _, n := range []struct {
		ns      *namespace
		dev, gw string
	}{{l.container, "c0", "172.19.0.1"}, {l.guest, "v0", "192.168.122.1"}} {
		n.ns.run(t, "sysctl -qw net.ipv4.conf."+n.dev+".route_localnet=1", "ip route del local 127.0.0.0/8 dev lo table local", "ip route add 127.0.0.9 via "+n.gw)
	}
	before := counter(t, l.m, CounterIsolated)
	if seen, err := ask(t, l.container, "172.19.0.100", "127.0.0.9:7777", silence); !errors.Is(err, errTimeout) {
		t.Errorf("a container in the host's loopback: seen as %q, error %v", seen, err)
	}
	if !moves(t, l.m, CounterIsolated, before) {
		t.Error("counter isolated did not move")
	}
	if seen, err := ask(t, l.guest, "192.168.122.2", "127.0.0.9:8095", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a neighbour to a port on the host's loopback: seen as %q, error %v", seen, err)
	}

	// The check can fail: without our rules a container does get in.
	l.fw.Locked = nil
	apply(t, l.m, l.fw, true, true)
	if seen, err := ask(t, l.container, "172.19.0.100", "127.0.0.9:7777", patience); seen != "172.19.0.100" || err != nil {
		t.Errorf("without the rules: seen as %q, error %v", seen, err)
	}
	l.nothingForeign(t)
}
