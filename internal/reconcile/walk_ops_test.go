package reconcile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// ops is everything that can happen in a walk.
var ops = []op{
	{"docker run", 14, opRun},
	{"docker run of three at once", 3, opRunThree},
	{"docker stop", 6, opStop},
	{"docker start", 8, opStart},
	{"docker restart", 3, opRestart},
	{"docker rm -f", 5, opRemove},
	{"docker network connect", 3, opConnect},
	{"docker network disconnect", 3, opDisconnect},
	{"docker network create", 5, opCreateNetwork},
	{"docker network rm", 2, opRemoveNetwork},
	{"rebind", 6, opRebind},
	{"rebind --clear", 2, opClear},
	{"NIC down or up", 5, opDown},
	{"carrier lost or back", 4, opCarrier},
	{"gateway dead or back", 4, opGateway},
	{"NIC unplugged or plugged", 3, opUnplug},
	{"NIC renamed", 2, opRename},
	{"address changed", 3, opAddress},
	{"gateway changed", 2, opNewGateway},
	{"a port of another process", 2, opPort},
	{"rules flushed", 3, opRules},
	{"routes flushed", 3, opRoutes},
	{"ruleset flushed", 3, opTable},
	{"table damaged", 2, opDamage},
	{"DOCKER-USER flushed", 2, opAccepts},
	{"link deleted", 3, opLink},
	{"veth off its bridge", 2, opVeth},
	{"interface group reset", 1, opGroup},
	{"daemon killed", 3, opKill},
	{"daemon stopped", 2, opTerm},
	{"daemon started", 6, opServe},
	{"Docker away or back", 4, opDocker},
	{"Docker mute or not", 2, opMute},
	{"Docker killed, containers die", 1, opDockerDies},
	{"fault begins or ends", 4, opFault},
}

const maxContainers = 9

var (
	labelSets = []map[string]string{
		nil, nil,
		{"eip.nic": "eth0"},
		{"eip.nic": "eth1"},
		{"eip.nic": "eth2"},
		{"eip.ip": "172.31.0.14"},
		{"eip.nic": "eth1", "eip.fallback": "eth2"},
		{"eip.nic": "eth2", "eip.fallback": "eth1,eth0"},
		{"eip.nic": "eth1", "eip.fallback": "host"},
		{"eip.nic": "eth1", "eip.fallback": "eth2,host"},
		{"eip.nic": "eth9"},
		{"eip.nonsense": "1"},
	}
	networkOptions = []map[string]string{nil, nil, nil, {"eip.nic": "eth1"}, {"eip.nic": "eth2", "eip.fallback": "eth1"}, {"eip.allow": "eth1,eth2"}}
	rebindSets     = []map[string]string{{"eip.nic": "eth0"}, {"eip.nic": "eth1"}, {"eip.nic": "eth2"}, {"eip.nic": "eth2", "eip.fallback": "eth0"}, {"eip.nic": "eth7"}}
	portSets       = [][]model.Publish{
		nil, nil,
		{{Proto: model.TCP, HostPort: 8080, Port: 80}},
		{{Proto: model.TCP, HostPort: 8081, Port: 80}, {Proto: model.UDP, HostPort: 53, Port: 53}},
		{{Proto: model.UDP, HostPort: 53, Port: 53}},
	}
)

func one[T any](w *walker, from []T) T {
	v, _ := pick(w, from)
	return v
}

// newContainer draws a container that does not run yet.
func (w *walker) newContainer() (*dockerContainer, bool) {
	if len(w.engine.networks) == 0 || len(w.engine.containers) >= maxContainers {
		return nil, false
	}
	c := &dockerContainer{labels: one(w, labelSets), ports: one(w, portSets)}
	names := sorted(w.engine.networks)
	c.networks = []string{one(w, names)}
	if other := one(w, names); w.rng.IntN(4) == 0 && other != c.networks[0] {
		c.networks = append(c.networks, other)
	}
	w.do(func() { c.id, c.name = w.engine.id("c"), fmt.Sprintf("app%d", w.engine.made) })
	return c, true
}

// begin starts a container; if Docker refuses, as the daemon is away or a label
// is wrong, it is gone again, as after docker run --rm.
func (w *walker) begin(c *dockerContainer) string {
	w.do(func() { w.engine.containers[c.name] = c })
	if err := w.engine.begin(c); err != nil {
		w.do(func() { delete(w.engine.containers, c.name) })
		return describe(c) + ": refused: " + err.Error()
	}
	return describe(c)
}

func opRun(w *walker) (string, bool) {
	c, ok := w.newContainer()
	if !ok {
		return "", false
	}
	return w.begin(c), true
}

func opRunThree(w *walker) (string, bool) {
	var what [3]string
	var fns []func()
	for i := range what {
		c, ok := w.newContainer()
		if !ok {
			return "", false
		}
		fns = append(fns, func() { what[i] = w.begin(c) })
	}
	parallel(fns...)
	return strings.Join(what[:], "; "), true
}

func opStop(w *walker) (string, bool) {
	c, ok := w.container(true)
	if !ok {
		return "", false
	}
	w.engine.end(c, true)
	return c.name, true
}

func opStart(w *walker) (string, bool) {
	c, ok := w.container(false)
	if !ok || slices.ContainsFunc(c.networks, func(n string) bool { return w.engine.networks[n] == nil }) {
		return "", false
	}
	if err := w.engine.begin(c); err != nil {
		return c.name + ": refused: " + err.Error(), true
	}
	return c.name, true
}

func opRestart(w *walker) (string, bool) {
	c, ok := w.container(true)
	if !ok {
		return "", false
	}
	w.engine.end(c, true)
	if err := w.engine.begin(c); err != nil {
		return c.name + ": refused: " + err.Error(), true
	}
	return c.name, true
}

func opRemove(w *walker) (string, bool) {
	c, ok := pick(w, w.containersThat(func(*dockerContainer) bool { return true }))
	if !ok {
		return "", false
	}
	w.engine.end(c, true)
	w.do(func() { delete(w.engine.containers, c.name) })
	w.engine.tell()
	return c.name, true
}

func opConnect(w *walker) (string, bool) {
	c, ok := w.container(true)
	if !ok {
		return "", false
	}
	name := one(w, sorted(w.engine.networks))
	if slices.ContainsFunc(c.at, func(a *attachment) bool { return a.network.name == name }) {
		return "", false
	}
	if err := w.engine.connect(c, name); err != nil {
		if i := slices.IndexFunc(c.at, func(a *attachment) bool { return a.network.name == name }); i >= 0 {
			w.engine.disconnect(c, c.at[i], true)
		}
		return c.name + " to " + name + ": refused: " + err.Error(), true
	}
	w.do(func() { c.networks = append(c.networks, name) })
	return c.name + " to " + name, true
}

func opDisconnect(w *walker) (string, bool) {
	c, ok := pick(w, w.containersThat(func(c *dockerContainer) bool { return len(c.at) > 1 }))
	if !ok {
		return "", false
	}
	a := one(w, c.at)
	w.do(func() { w.remember(c) })
	w.engine.disconnect(c, a, true)
	w.do(func() { c.networks = slices.DeleteFunc(c.networks, func(n string) bool { return n == a.network.name }) })
	return c.name + " from " + a.network.name, true
}

func opCreateNetwork(w *walker) (string, bool) {
	n := w.rng.IntN(4)
	name := fmt.Sprintf("net%d", n)
	if w.engine.networks[name] != nil {
		return "", false
	}
	ours, options := w.rng.IntN(3) > 0, one(w, networkOptions)
	what := fmt.Sprintf("%s, ours %v, %v", name, ours, options)
	if err := w.engine.createNetwork(name, ours, netip.MustParsePrefix(fmt.Sprintf("172.%d.0.0/16", 19+n)), options); err != nil {
		what += ": refused: " + err.Error()
	}
	return what, true
}

func opRemoveNetwork(w *walker) (string, bool) {
	free := slices.DeleteFunc(sorted(w.engine.networks), func(name string) bool {
		used := func(c *dockerContainer) bool { return slices.Contains(c.networks, name) }
		return len(w.containersThat(used)) > 0
	})
	name, ok := pick(w, free)
	if !ok {
		return "", false
	}
	w.engine.removeNetwork(name)
	return name, true
}

func opRebind(w *walker) (string, bool) { return w.rebind(one(w, rebindSets)) }
func opClear(w *walker) (string, bool)  { return w.rebind(nil) }

func (w *walker) rebind(options map[string]string) (string, bool) {
	c, ok := w.container(true)
	if !ok || !w.alive() {
		return "", false
	}
	what := fmt.Sprintf("%s to %v", c.name, options)
	w.expectMove(c, options)
	if _, err := w.daemon.loop.Rebind(w.t.Context(), c.name, options); err != nil {
		return what + ": refused: " + err.Error(), true
	}
	return what, true
}

// expectMove lets both ways of a container count until all is quiet: where it
// goes, and where it comes back to if that fails.
func (w *walker) expectMove(c *dockerContainer, options map[string]string) {
	w.do(func() {
		w.remember(c)
		before, was := w.disk.rebinds[c.id]
		w.disk.rebinds[c.id] = model.Rebind{ContainerID: c.id, Options: options}
		w.remember(c)
		if w.disk.rebinds[c.id] = before; !was {
			delete(w.disk.rebinds, c.id)
		}
	})
}
