package plan

import (
	"cmp"
	"net/netip"

	"github.com/eipnet/eipnet/internal/model"
)

// Stay is where a container has failed over to, so that it stays there though
// its own NIC works again (--failback never). It counts as long as the
// container asks for the same NIC in the same place.
type Stay struct {
	Selector model.Selector
	From     model.Level
	NIC      string
}

// way is one NIC that a pin may take.
type way struct {
	nic    model.NIC
	health model.Health
}

// fallBack decides whether a pin takes another way than its own: a fallback NIC
// that works better, or the host's routing where no NIC works. Neither: its own
// NIC, or none, is what it has. why says what is wrong with its own.
func (c *compute) fallBack(e model.Endpoint, d model.Decision, own *model.NIC, addr netip.Addr) (other *model.NIC, host bool, why string) {
	if d.Fallback.Holds() {
		return nil, false, ""
	}
	name, mine := c.ownWay(e, d, own, addr)
	var ways []way
	for _, n := range d.Fallback.NICs() {
		nic, _, err := c.in.Host.Resolve(model.Selector{Kind: model.ByNIC, Name: n}, nil)
		if err != nil {
			c.watch[n] = true
			c.problem(model.CodeNoFallback, model.Warning, e.Name(), model.KeyFallback+" names "+n+", and no NIC of this host has this name; NICs of this host: "+c.in.Host.NICList(),
				"correct it, or attach the NIC; until then it is passed over")
			continue
		}
		if d.Allows(nic.Name) != nil || own != nil && nic.Name == own.Name {
			continue
		}
		c.watch[nic.Name] = true
		a4, a6 := leavesWith(e, nic, netip.Addr{}, netip.Addr{})
		ways = append(ways, way{nic, c.fitness(nic, a4, a6)})
	}
	stay, stays := c.in.Stay[e.Container.ID]
	stays = stays && stay.Selector == d.Selector && stay.From == d.From
	best := mine.State
	for i, w := range ways {
		if stays && w.nic.Name == stay.NIC && w.health.State < model.Failed {
			if mine.State == model.Healthy {
				mine.Why = "works again"
			}
			return &ways[i].nic, false, name + " " + mine.Why
		}
		if w.health.State < best {
			best, other = w.health.State, &ways[i].nic
		}
	}
	return other, best == model.Failed && d.Fallback.Host(), name + " " + mine.Why
}

// ownWay tells how well the NIC that the selector names works, and what to call it.
func (c *compute) ownWay(e model.Endpoint, d model.Decision, own *model.NIC, addr netip.Addr) (string, model.Health) {
	if own == nil {
		if d.Selector.Kind == model.ByNIC {
			c.watch[d.Selector.Name] = true
		}
		return d.Selector.String(), model.Health{State: model.Failed, Why: "is not on this host"}
	}
	c.watch[own.Name] = true
	a4, a6 := leavesWith(e, *own, addr, d.IP6)
	return own.Name, c.fitness(*own, a4, a6)
}

// fitness is how well a NIC would do for packets that leave with these addresses.
func (c *compute) fitness(nic model.NIC, a4, a6 netip.Addr) model.Health {
	h := nic.Fitness(c.in.Health[nic.Name])
	if h.State < model.Failed && !a4.IsValid() && !a6.IsValid() {
		return model.Health{State: model.Failed, Why: "has no usable address"}
	}
	return h
}

// leavesWith returns the NIC's addresses that an endpoint's packets would leave
// with, those asked for if there are any; zero where a family is held.
func leavesWith(e model.Endpoint, nic model.NIC, addr, ip6 netip.Addr) (a4, a6 netip.Addr) {
	if e.Addr4.IsValid() {
		a4 = choose(nic, model.IPv4, addr)
	}
	if e.Addr6.IsValid() {
		a6 = choose(nic, model.IPv6, cmp.Or(ip6, addr))
	}
	return a4, a6
}
