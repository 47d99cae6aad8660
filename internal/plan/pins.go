package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// decide fills pins: what becomes of every endpoint. A pin is decided once for
// a container and holds for all its endpoints, so that no second network is a
// way around it.
func (c *compute) decide() {
	c.pins = make([]Pin, len(c.in.Endpoints))
	for _, group := range c.containers() {
		c.decideContainer(group)
	}
}

// containers groups endpoints, by index, that belong to one container. One
// whose container is not known stands alone.
func (c *compute) containers() [][]int {
	var groups [][]int
	at := make(map[string]int)
	for i, e := range c.in.Endpoints {
		id := e.Container.ID
		if j, ok := at[id]; ok && id != "" {
			groups[j] = append(groups[j], i)
			continue
		}
		at[id] = len(groups)
		groups = append(groups, []int{i})
	}
	return groups
}

func (c *compute) decideContainer(group []int) {
	var said model.Said
	known, lost := false, false
	for _, i := range group {
		e := c.in.Endpoints[i]
		n, ok := c.networks[e.NetworkID]
		if !ok || e.Phase == model.Left {
			continue
		}
		said.Endpoints = append(said.Endpoints, e.Options)
		said.Networks = append(said.Networks, n)
		if e.Container.Known {
			// Of an endpoint that came later the labels may not be known yet.
			said.Labels, known = e.Container.Labels, true
		}
		rebind := c.rebinds[e.Container.ID]
		said.Rebind = rebind.Options
		lost = lost || c.in.Lost[e.ID] || slices.Contains(rebind.Lost, e.ID)
	}
	d, err := said.Decide()
	decided := false
	for _, i := range group {
		e := c.in.Endpoints[i]
		if _, ok := c.networks[e.NetworkID]; e.Phase == model.Left || !ok {
			c.pins[i] = Pin{Endpoint: e.ID, State: StateReleased, Why: "left its network"}
			continue
		}
		if err != nil {
			if !decided {
				c.problem(model.CodeBadSelector, model.Failure, e.Name(), "held: "+err.Error(), "correct the option or label and re-create the container")
			}
			c.pins[i] = Pin{Endpoint: e.ID, State: StateBlocked, Why: err.Error()}
		} else {
			p := c.pin(e, d, known)
			if lost && p.State == StateUnpinned && p.InsteadOf == "" {
				p = c.forgotten(e, p, !decided)
			}
			c.pins[i] = c.leave(p)
		}
		if !decided && len(e.Container.Ignored) > 0 {
			c.problem(model.CodeImageLabel, model.Warning, e.Name(), fmt.Sprintf("labels of its image are ignored: %q", e.Container.Ignored),
				"give the container the label itself, if that is what you want")
		}
		decided = true
	}
}

// pin decides about one endpoint; known says whether its container's labels are.
func (c *compute) pin(e model.Endpoint, d model.Decision, known bool) Pin {
	p := Pin{Endpoint: e.ID, Selector: d.Selector, From: d.From}
	stock := c.networks[e.NetworkID].Stock
	told := d.From == model.FromEndpoint || d.From == model.FromRebind // whatever the labels say
	clash := c.clash(e)
	switch {
	case clash != "":
		c.problem(model.CodeAddressClash, model.Failure, e.Name(), "held: "+clash, "give the one or the other another address")
		p.State, p.Why = StateBlocked, clash
		return p
	case e.Phase == model.Created:
		p.State, p.Why = StatePending, "not joined yet"
		return p
	case !known && !told && stock && !c.strict[e.NetworkID] && e.Container.ID == "":
		// Docker's own endpoints (a load balancer's) have no container. Nobody
		// asked for anything here.
		p.State = StateUnpinned
		return p
	case !known && !told:
		// A label would overrule the network's option, and even an absent
		// selector is a decision that only the labels can confirm.
		p.State, p.Why = StatePending, "its labels are not known yet"
		c.problem(model.CodePending, model.Warning, e.Name(), "held: its labels are not known yet", "it is decided as soon as Docker's API answers")
		return p
	case d.Selector.IsZero() && c.mayBePinned(e):
		p.State, p.Why = StatePending, "docker has not told yet on which networks its container is"
		return p
	case d.Selector.IsZero() && c.strict[e.NetworkID] && !e.OptionsKnown:
		p.State, p.Why = StatePending, "its endpoint options are not known yet"
		return p
	case d.Selector.IsZero():
		p.State = StateUnpinned
		return p
	}
	return c.satisfy(e, p, d)
}

// forgotten holds what the kernel had pinned when the state was lost and about
// which nothing is said now: it had been rebound. Where to nobody knows, and by
// the host's routing it would leave by another NIC than it was told to.
func (c *compute) forgotten(e model.Endpoint, p Pin, tell bool) Pin {
	p.State, p.Lost, p.Why = StateBlocked, true, "it was rebound, and to where is forgotten"
	if tell {
		c.problem(model.CodeStateLost, model.Failure, e.Name(), "held: it was pinned, and to where was said by eipnet rebind alone, which is forgotten, as the state file was lost",
			"eipnet rebind "+e.Name()+" NIC; or, to have it leave by the host's routing, restart it or eipnet rebind "+e.Name()+" --clear")
	}
	return p
}

// leave holds what is not pinned any more until its connections are forgotten:
// each keeps the source address that it began with, and would take it out by
// the host's routing.
func (c *compute) leave(p Pin) Pin {
	if p.State == StateUnpinned && c.in.Leaving[p.Endpoint] {
		p.State, p.Leaving, p.Why = StatePending, true, "its connections by the NIC that it had are being forgotten"
	}
	return p
}

// mayBePinned reports whether an endpoint's container may be pinned by what
// another network of it says, or an endpoint there: that is known when Docker
// has been heard. Until then the kernel may hold a pin of an earlier process,
// which stays, and what it does not hold is pending.
func (c *compute) mayBePinned(e model.Endpoint) bool {
	return !c.in.DockerUp && e.Phase == model.Joined && e.Container.Known
}

// clash says what has the address of a host entry, too. Whose packets those
// with this address are could not be told.
func (c *compute) clash(e model.Endpoint) string {
	if !c.networks[e.NetworkID].Local {
		return ""
	}
	if nic, ok := c.in.Host.NICWith(e.Addr4); ok {
		return fmt.Sprintf("%v is an address of %s", e.Addr4, nic.Name)
	}
	for _, n := range c.in.Networks {
		if n.ID != e.NetworkID && n.Subnet4.Contains(e.Addr4) {
			return fmt.Sprintf("%v is an address of %s", e.Addr4, n.Title())
		}
	}
	for _, b := range c.in.Host.Bridges {
		for _, s := range b.Subnets {
			if s.Prefix.Contains(e.Addr4) {
				return fmt.Sprintf("%v is an address of Docker's bridge %s", e.Addr4, b.Name)
			}
		}
	}
	return ""
}

// hasNICsAddress reports whether a host entry's address is a NIC's: then it is the host's.
func (c *compute) hasNICsAddress(n model.Network) bool {
	_, taken := c.in.Host.NICWith(n.Gateway4)
	return n.Local && taken
}

// satisfy turns a selector into a NIC and addresses, or says why it cannot.
func (c *compute) satisfy(e model.Endpoint, p Pin, d model.Decision) Pin {
	nic, addr, err := c.in.Host.Resolve(d.Selector, c.in.Settings.EIPs)
	own := &nic
	if err != nil {
		own = nil
	} else if beyond := d.Allows(nic.Name); beyond != nil {
		c.problem(model.CodeBadSelector, model.Failure, e.Name(), "held: "+beyond.Error(), "choose an allowed NIC and re-create the container")
		p.State, p.Why = StateBlocked, beyond.Error()
		return p
	}
	other, host, why := c.fallBack(e, d, own, addr)
	switch {
	case other != nil:
		c.problem(model.CodeFailedOver, model.Warning, e.Name(), "failed over to "+other.Name+": "+why,
			"mend that; it goes back by itself then (unless --failback never), or with eipnet rebind")
		p.InsteadOf, p.Why = p.Selector.String(), why
		nic, addr, d.IP6 = *other, netip.Addr{}, netip.Addr{}
	case host:
		c.problem(model.CodeFailedOver, model.Warning, e.Name(), "follows the host's routing (eip.fallback=host): "+why, "mend that; it goes back by itself then")
		p.State, p.InsteadOf, p.Why = StateUnpinned, p.Selector.String(), why
		return p
	case err != nil:
		code := model.CodeNICMissing
		if d.Selector.Kind == model.ByPublic {
			code = model.CodeEIPUnknown
		}
		c.problem(code, model.Failure, e.Name(), "held: "+err.Error(), "attach the NIC, or move the container: eipnet rebind "+e.Name()+" NIC")
		p.State, p.Why = StateBlocked, err.Error()
		return p
	}
	return c.pinTo(e, p, nic, addr, d)
}

// pinTo pins an endpoint to a NIC, with the addresses asked for if there are any.
func (c *compute) pinTo(e model.Endpoint, p Pin, nic model.NIC, addr netip.Addr, d model.Decision) Pin {
	if nic.VRF != "" {
		// Its rule comes before ours, and what comes in by the NIC is looked up in the VRF's table, where containers are not.
		p.State, p.Why = StateBlocked, nic.Name+" is in the VRF "+nic.VRF
		c.problem(model.CodeNICInVRF, model.Failure, e.Name(), "held: "+p.Why+", so that nothing comes back by it", "take it out of the VRF: ip link set "+nic.Name+" nomaster")
		return p
	}
	p.State, p.NIC, p.Except = StatePinned, nic.Name, d.Except
	p.use(e, nic, addr, d.IP6)
	for _, f := range model.Families {
		if _, has := e.Addr(f); has && !p.Addr(f).IsValid() {
			why := fmt.Sprintf("%s has no usable %v address", nic.Name, f)
			if f == model.IPv6 && d.IP6.IsValid() {
				why = fmt.Sprintf("%s does not have %v (%s)", nic.Name, d.IP6, model.KeyIP6)
			}
			c.problem(model.CodeNICNoAddress, model.Failure, e.Name(), fmt.Sprintf("its %v is held: %s", f, why), "give the NIC an address")
		}
	}
	if !p.Addr4.IsValid() && !p.Addr6.IsValid() {
		p.State, p.Why = StateBlocked, nic.Name+" has no usable address"
		return p
	}
	for public, private := range c.in.Settings.EIPs {
		if private == p.Addr4 && (!p.Public.IsValid() || public.Less(p.Public)) {
			p.Public = public
		}
	}
	switch h := c.in.Health[nic.Name]; {
	case !nic.Up || !nic.Carrier:
		c.problem(model.CodeNICDown, model.Failure, nic.Name, "is down: what is pinned to it is held", "ip link set "+nic.Name+" up, or check its attachment")
	case h.State == model.Failed:
		c.problem(model.CodeNICNoAnswer, model.Failure, nic.Name, h.Why+": nothing comes of what is sent by it", "check the NIC's attachment and its gateway")
	}
	return p
}

// use gives the pin the NIC's addresses, those asked for if there are any. To an
// endpoint without IPv6 goes the NIC's IPv6 address beside its first IPv4 one, as
// the others are other containers', unless one is named.
func (p *Pin) use(e model.Endpoint, nic model.NIC, addr, ip6 netip.Addr) {
	p.Addr4, p.Addr6 = leavesWith(e, nic, addr, ip6)
	first, _ := nic.Addr(model.IPv4)
	asked := cmp.Or(ip6, addr)
	if !e.Addr6.IsValid() && nic.Gateway6.Addr.IsValid() && (asked.Is6() || p.Addr4 == first) {
		p.Listen6 = choose(nic, model.IPv6, asked)
	}
}

// Addr returns the address that the pin's packets of that family leave with; zero: held.
func (p Pin) Addr(f model.Family) netip.Addr {
	if f == model.IPv6 {
		return p.Addr6
	}
	return p.Addr4
}

// choose picks the NIC's address of a family: the one asked for if it is the
// NIC's and of that family, none if it is not the NIC's, else the first.
func choose(nic model.NIC, f model.Family, asked netip.Addr) netip.Addr {
	if asked.IsValid() && model.FamilyOf(asked) == f {
		if nic.Has(asked) {
			return asked
		}
		return netip.Addr{}
	}
	a, _ := nic.Addr(f)
	return a
}

// strictNetworks are the stock networks under lock 1: those that bear eip.*
// labels and do not say eip.strict=false, and those of --strict-networks.
func (c *compute) strictNetworks() map[string]bool {
	strict := make(map[string]bool)
	for _, n := range c.in.Networks {
		if !n.Stock {
			continue
		}
		// Labels that cannot be read are labels.
		o, err := model.ParseNetworkOptions(n.Options)
		asked := len(n.Options) > 0 && (err != nil || !o.Loose)
		if asked || slices.Contains(c.in.Settings.StrictNetworks, n.Name) || slices.Contains(c.in.Settings.StrictNetworks, n.ID) {
			strict[n.ID] = true
		}
	}
	return strict
}

// relevant keeps the networks that concern us: all of ours, but for a host
// entry that has a NIC's address, and stock ones that are strict or have an endpoint about which something was said. All others
// are never touched.
func (c *compute) relevant() []model.Network {
	concerned := make(map[string]bool)
	for i, e := range c.in.Endpoints {
		if c.concerns(i) {
			concerned[e.NetworkID] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(c.in.Networks), func(n model.Network) bool {
		// A lock on a NIC's own address would end the sessions of the host.
		return n.Stock && !c.strict[n.ID] && !concerned[n.ID] || c.hasNICsAddress(n)
	})
}
