package reconcile_test

import (
	"slices"
	"testing/synctest"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// check looks at everything when all is quiet.
func (w *walker) check() {
	res, err := w.daemon.loop.Last(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if res.Err != nil || len(res.Partial) > 0 {
		w.t.Errorf("the last pass failed: %v, %v", res.Err, res.Partial)
	}
	w.do(func() {
		w.kernelIs(res.Desired)
		w.diskIs(res)
		for _, name := range sorted(w.engine.containers) {
			c := w.engine.containers[name]
			want := w.expected(c)
			for _, a := range c.at {
				if got := w.kernel.send(a); got != want {
					w.t.Errorf("%s (labels %v, rebind %v) on %s: leaves by %v, want %v", name, c.labels, w.disk.rebinds[c.id].Options, a.network.name, got, want)
					w.t.Logf("it is %+v on %+v; sources %+v; spoof table %+v", *a, *a.network, w.kernel.table.Sources, w.kernel.spoof)
				}
				w.flowsAre(c, a, want)
				a.blind = false
			}
			w.said[c.id] = nil
		}
		for _, n := range w.engine.networks {
			n.seen = true
		}
	})
	before := len(w.wrote)
	for range 3 {
		w.daemon.loop.PokeForwarding()
		wait(reconcile.RetryInterval)
	}
	synctest.Wait()
	if wrote := w.wrote[before:]; len(wrote) > 0 {
		w.t.Errorf("written though nothing changed: %q", wrote)
	}
}

// kernelIs compares the kernel with what is desired. Forwards are what the
// ports that could be had leave of them.
func (w *walker) kernelIs(d plan.Desired) {
	k := w.kernel
	same := func(what string, want, got any) {
		if !equal(want, got) {
			w.t.Errorf("%s: want %v, the kernel has %v", what, want, got)
		}
	}
	rules, routes := make(map[plan.Rule]bool), make(map[plan.Route]bool)
	for _, r := range d.Routing.Rules {
		rules[r] = true
	}
	for _, r := range d.Routing.Routes {
		routes[r] = true
	}
	same("rules", rules, k.rules)
	same("routes", routes, k.routes)
	same("table", d.Firewall, *k.table)
	same("table bridge", d.Bridges, k.spoof)
	same("accepts", len(d.Firewall.Ours), len(k.accepts))
	var bridges, veths, wantBridges, wantVeths, grouped []string
	for _, name := range sorted(k.links) {
		l := k.links[name]
		switch {
		case l.kind == "bridge" && l.alias != "":
			bridges = append(bridges, name)
		case l.kind == "veth" && l.alias != "":
			veths = append(veths, name+" on "+l.master)
		}
		if l.group != 0 {
			grouped = append(grouped, name)
		}
	}
	for _, name := range sorted(w.engine.networks) {
		if n := w.engine.networks[name]; n.ours {
			wantBridges = append(wantBridges, n.bridge)
		}
	}
	for _, c := range w.engine.containers {
		for _, a := range c.at {
			if a.network.ours {
				wantVeths = append(wantVeths, hostVeth(a.endpoint)+" on "+a.network.bridge)
			}
		}
	}
	slices.Sort(wantVeths)
	slices.Sort(wantBridges)
	same("bridges", wantBridges, bridges)
	same("veths", wantVeths, veths)
	same("grouped NICs", d.Links.Grouped, grouped)
	same("the null device is there", d.Links.Null, k.links[model.NullDevice] != nil)
	for path := range w.disk.originals {
		if !slices.ContainsFunc(d.Sysctls, func(s plan.Sysctl) bool { return s.Path == path }) {
			w.t.Errorf("sysctl %s was not put back", path)
		}
	}
}

// diskIs compares what is persisted with what Docker has.
func (w *walker) diskIs(res *reconcile.Result) {
	var networks, endpoints []string
	for _, n := range w.engine.networks {
		if n.ours || len(n.options) > 0 {
			networks = append(networks, n.id)
		}
	}
	known := make(map[string]bool)
	for _, c := range w.engine.containers {
		known[c.id] = true
		for _, a := range c.at {
			if a.network.ours {
				endpoints = append(endpoints, a.endpoint)
			}
		}
	}
	slices.Sort(networks)
	slices.Sort(endpoints)
	if got := sorted(w.disk.networks); !slices.Equal(got, networks) {
		w.t.Errorf("networks on disk %v, Docker has %v", got, networks)
	}
	if got := sorted(w.disk.endpoints); !slices.Equal(got, endpoints) {
		w.t.Errorf("endpoints on disk %v, Docker has %v", got, endpoints)
	}
	for id := range w.disk.rebinds {
		if !known[id] {
			w.t.Errorf("a rebind of a container that is gone: %v", id)
		}
	}
	for _, port := range res.Desired.Ports {
		there, reserved := slices.Contains(w.kernel.table.Forwards, port.Forward), w.daemon.ports[port]
		if failed := res.PortErrors[port.Endpoint] != nil; there != (reserved && port.Proxy != plan.ProxyAll) || !reserved && !failed {
			w.t.Errorf("port %v: forwarded %v, reserved %v, refused %v", port, there, reserved, failed)
		}
	}
}

// flowsAre sees to it that a container that leaves has no connection of which
// the packets would leave otherwise.
func (w *walker) flowsAre(c *dockerContainer, a *attachment, now exit) {
	for f := range w.kernel.flows {
		if f.endpoint == a.endpoint && now != (exit{}) && f.address != now.address {
			w.t.Errorf("%s (labels %v, rebind %v) on %s: %v leaves by %v, and has a connection as %v", c.name, c.labels, w.disk.rebinds[c.id].Options, a.network.name, a.addr, now, f.address)
			delete(w.kernel.flows, f)
		}
	}
}

// nothingLeft looks when all containers and networks are gone.
func (w *walker) nothingLeft() {
	w.do(func() {
		k := w.kernel
		if n := len(k.rules) + len(k.routes) + len(k.accepts) + len(k.spoof) + len(w.disk.endpoints) + len(w.disk.networks) + len(w.disk.rebinds) + len(w.disk.originals); n > 0 {
			w.t.Errorf("left: rules %v, routes %v, accepts %v, bridge table %v, disk %+v", k.rules, k.routes, k.accepts, k.spoof, w.disk)
		}
		if empty := (plan.Firewall{Mask: model.DefaultMask}); !equal(*k.table, empty) {
			w.t.Errorf("left in the table: %+v", *k.table)
		}
		for name, l := range k.links {
			if l.kind != "nic" || l.group != 0 {
				w.t.Errorf("left: link %s %+v", name, *l)
			}
		}
		for path, v := range k.sysctls {
			if was, known := w.pristine[path]; known && was != v {
				w.t.Errorf("left: sysctl %s=%s, was %s", path, v, was)
			}
		}
	})
}
