package reconcile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/eipnet/eipnet/internal/model"
)

// nic picks a NIC that is there.
func (w *walker) nic() (string, *simLink) {
	names := slices.DeleteFunc(sorted(w.kernel.links), func(name string) bool { return w.kernel.links[name].kind != "nic" })
	name := one(w, names)
	return name, w.kernel.links[name]
}

// change changes the kernel, and netlink tells.
func (w *walker) change(fn func()) {
	w.do(func() {
		// Who fails over leaves otherwise from now on, and by its own way until then.
		for _, c := range w.engine.containers {
			w.remember(c)
		}
		fn()
		w.poke()
	})
}

func opDown(w *walker) (string, bool) {
	name, l := w.nic()
	if l == nil {
		return "", false
	}
	w.change(func() {
		if l.up = !l.up; !l.up {
			w.kernel.unroute(name)
		}
	})
	return fmt.Sprintf("%s up %v", name, l.up), true
}

func opCarrier(w *walker) (string, bool) {
	name, l := w.nic()
	if l == nil {
		return "", false
	}
	w.change(func() { l.carrier = !l.carrier })
	return fmt.Sprintf("%s carrier %v", name, l.carrier), true
}

func opGateway(w *walker) (string, bool) {
	name, l := w.nic()
	if l == nil {
		return "", false
	}
	w.change(func() { l.mute = !l.mute })
	return fmt.Sprintf("%s silent %v", name, l.mute), true
}

func opUnplug(w *walker) (string, bool) {
	for name, at := range map[string][2]string{"eth1": {"172.31.0.14/20", "172.31.0.1"}, "eth2": {"10.9.0.21/24", "10.9.0.1"}} {
		if w.kernel.links[name] == nil {
			w.change(func() { w.kernel.plug(name, netip.MustParsePrefix(at[0]), netip.MustParseAddr(at[1])) })
			return name + " plugged", true
		}
	}
	name := one(w, []string{"eth1", "eth2"})
	w.change(func() { w.kernel.remove(name) })
	return name + " unplugged", true
}

func opRename(w *walker) (string, bool) {
	from, to := "eth1", "lan1"
	if w.kernel.links[to] != nil {
		from, to = to, from
	}
	if w.kernel.links[from] == nil || w.kernel.links[to] != nil {
		return "", false
	}
	w.change(func() { w.kernel.rename(from, to) })
	return from + " to " + to, true
}

func opAddress(w *walker) (string, bool) {
	name, l := w.nic()
	other := map[string]string{"172.31.0.14/20": "172.31.0.15/20", "172.31.0.15/20": "172.31.0.14/20", "10.9.0.21/24": "10.9.0.22/24", "10.9.0.22/24": "10.9.0.21/24"}
	if l == nil {
		return "", false
	}
	to, ok := other[l.addrs[0].String()]
	if !ok {
		return "", false
	}
	w.change(func() { l.addrs = []netip.Prefix{netip.MustParsePrefix(to)} })
	return name + " has " + to, true
}

func opNewGateway(w *walker) (string, bool) {
	name, l := w.nic()
	if l == nil {
		return "", false
	}
	w.change(func() {
		if next := l.gateway.Next(); l.gateway == l.addrs[0].Masked().Addr().Next() {
			l.gateway = next
		} else {
			l.gateway = l.addrs[0].Masked().Addr().Next()
		}
	})
	return fmt.Sprintf("%s by %v", name, l.gateway), true
}

func opPort(w *walker) (string, bool) {
	r := reservation{model.TCP, netip.MustParseAddr("172.31.0.14"), 8080}
	w.change(func() {
		if w.kernel.foreign[r] {
			delete(w.kernel.foreign, r)
		} else if !slices.ContainsFunc(w.kernel.held(), func(h reservation) bool { return h == r || h.port == r.port && h.addr.IsUnspecified() }) {
			w.kernel.foreign[r] = true
		}
	})
	return strconv.FormatBool(w.kernel.foreign[r]), true
}

// held are the host ports that are forwarded, and so reserved.
func (k *kernel) held() (out []reservation) {
	if k.table != nil {
		for _, f := range k.table.Forwards {
			out = append(out, reservation{f.Proto, f.Addr, f.Port})
		}
	}
	return out
}

func opRules(w *walker) (string, bool) {
	w.broken[0] = true
	w.change(func() {
		for r := range w.kernel.rules {
			if w.rng.IntN(2) == 0 {
				delete(w.kernel.rules, r)
			}
		}
	})
	return "", true
}

func opRoutes(w *walker) (string, bool) {
	w.broken[0] = true
	table := model.Table(model.TableInside + w.rng.IntN(5))
	if w.rng.IntN(4) == 0 {
		table = model.TableNull
	}
	w.change(func() {
		for r := range w.kernel.routes {
			if r.Table == table {
				delete(w.kernel.routes, r)
			}
		}
	})
	return fmt.Sprint("of table ", table), true
}

func opTable(w *walker) (string, bool) {
	w.broken[1] = true
	w.change(func() {
		w.kernel.table, w.kernel.spoof = nil, nil
		w.tellTables()
	})
	return "", true
}

func opDamage(w *walker) (string, bool) {
	w.broken[1] = true
	if w.kernel.table == nil {
		return "", false
	}
	w.change(func() {
		fw := *w.kernel.table
		fw.Sources, fw.Forwards = nil, nil
		w.kernel.table = &fw
		w.tellTables()
	})
	return "sources and forwards are gone", true
}

// tellTables is what nftables' notifications do.
func (w *walker) tellTables() {
	if w.daemon != nil {
		w.daemon.loop.PokeTables()
	}
}

func opAccepts(w *walker) (string, bool) {
	w.do(func() {
		w.kernel.accepts = nil
		if w.daemon != nil {
			w.daemon.loop.PokeForwarding()
		}
	})
	return "", true
}

func opLink(w *walker) (string, bool) {
	w.broken[0] = true
	ours := slices.DeleteFunc(sorted(w.kernel.links), func(name string) bool {
		l := w.kernel.links[name]
		return l.kind != "null" && (l.kind != "bridge" || l.alias == "")
	})
	name, ok := pick(w, ours)
	if !ok {
		return "", false
	}
	w.change(func() { w.kernel.remove(name) })
	return name, true
}

func opVeth(w *walker) (string, bool) {
	ours := slices.DeleteFunc(sorted(w.kernel.links), func(name string) bool {
		l := w.kernel.links[name]
		return l.kind != "veth" || l.alias == ""
	})
	name, ok := pick(w, ours)
	if !ok {
		return "", false
	}
	w.change(func() { w.kernel.links[name].master = "" })
	return name, true
}

func opGroup(w *walker) (string, bool) {
	name, l := w.nic()
	if l == nil {
		return "", false
	}
	w.change(func() { l.group = 0 })
	return name, true
}

func opKill(w *walker) (string, bool) {
	if !w.alive() {
		return "", false
	}
	w.stop(true)
	return "", true
}

func opTerm(w *walker) (string, bool) {
	if !w.alive() {
		return "", false
	}
	w.stop(false)
	return "", true
}

func opServe(w *walker) (string, bool) {
	if w.alive() {
		return "", false
	}
	w.start(0)
	return "", true
}

func opDocker(w *walker) (string, bool) {
	w.do(func() { w.engine.up = !w.engine.up })
	w.engine.tell()
	return fmt.Sprintf("up %v", w.engine.up), true
}

func opMute(w *walker) (string, bool) {
	w.do(func() { w.engine.mute = !w.engine.mute })
	return strconv.FormatBool(w.engine.mute), true
}

// opDockerDies: the engine is killed without live-restore, and comes back. Those
// that it restarts get new endpoints with the old addresses; nobody told the
// driver. That the kernel refuses the table just then is one fault too many.
func opDockerDies(w *walker) (string, bool) {
	running := w.containersThat(func(c *dockerContainer) bool { return c.running })
	w.do(func() { w.engine.up, w.faults.table = false, false })
	for _, c := range running {
		w.engine.end(c, false)
	}
	var again []string
	for _, c := range running {
		if w.rng.IntN(2) == 0 {
			if err := w.engine.begin(c); err == nil {
				again = append(again, c.name)
			}
		}
	}
	w.do(func() { w.engine.up = true })
	w.engine.tell()
	return fmt.Sprintf("%d ran, again %v", len(running), again), true
}

func opFault(w *walker) (string, bool) {
	w.do(func() {
		switch w.rng.IntN(3) {
		case 0:
			w.faults.table = !w.faults.table
		case 1:
			w.faults.disk = !w.faults.disk
		case 2:
			w.faults.links = !w.faults.links
		}
	})
	w.poke()
	return fmt.Sprintf("%+v", w.faults), true
}
