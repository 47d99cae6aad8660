package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// decideHost decides about containers on the host's network, where they can be
// told from the host's own programs: by their cgroup. One that does not run has
// none, and nothing is to be decided yet.
func (c *compute) decideHost() []HostPin {
	if !c.in.Settings.Cgroups {
		return nil
	}
	var out []HostPin
	for _, s := range c.in.Strays {
		if s.Mode != model.ModeHost {
			continue
		}
		switch group, ok := c.in.Cgroups[s.Container.ID]; {
		case ok && group == model.Cgroup{}:
		case ok:
			out = append(out, HostPin{Container: s.Container, Cgroup: group, Pin: c.decideOnHost(s.Container)})
		case s.Running:
			c.problem(model.CodeNoEndpoint, model.Failure, s.Container.Name, "it is not pinned: it has the host's network, and its cgroup is not to be found below /sys/fs/cgroup",
				"restart it with Docker's own cgroup parent, or put it on a bridge or eipnet network")
		}
	}
	slices.SortFunc(out, func(a, b HostPin) int { return cmp.Compare(a.Container.ID, b.Container.ID) })
	return out
}

func (c *compute) decideOnHost(on model.Container) Pin {
	e := model.Endpoint{ID: on.ID, Phase: model.Joined, Container: on, Addr4: netip.IPv4Unspecified()}
	if slices.ContainsFunc(c.in.Host.NICs, func(n model.NIC) bool { return hasFamily(n, model.IPv6) }) {
		e.Addr6 = netip.IPv6Unspecified()
	}
	d, err := model.Said{Labels: on.Labels}.Decide()
	p := Pin{Endpoint: on.ID, Selector: d.Selector, From: d.From}
	switch {
	case !on.Known:
		c.problem(model.CodePending, model.Warning, e.Name(), "held: its labels are not known yet", "it is decided as soon as its image can be read")
		p.State, p.Why = StatePending, "its labels are not known yet"
		return p
	case err != nil:
		return c.heldOnHost(e, p, err.Error(), "correct the label and re-create the container")
	case d.Selector.IsZero():
		p.State = StateUnpinned
		return p
	}
	p = c.satisfy(e, p, d)
	if nic, ok := c.in.Host.NIC(p.NIC); ok && p.State == StatePinned {
		for _, f := range model.Families {
			// A mark says which NIC, and no more.
			if first, _ := nic.Addr(f); p.Addr(f).IsValid() && p.Addr(f) != first {
				return c.heldOnHost(e, p, fmt.Sprintf("with the host's network it leaves with the first address of %s, %v, and not with %v", p.NIC, first, p.Addr(f)),
					"name the first one, or put it on a bridge or eipnet network")
			}
		}
	}
	return p
}

func (c *compute) heldOnHost(e model.Endpoint, p Pin, why, fix string) Pin {
	c.problem(model.CodeBadSelector, model.Failure, e.Name(), "held: "+why, fix)
	return Pin{Endpoint: p.Endpoint, State: StateBlocked, Selector: p.Selector, From: p.From, Why: why}
}

// groups adds what the firewall does about containers on the host's network.
func (c *compute) groups(fw *Firewall) {
	for _, p := range c.hostPins {
		g := Group{Cgroup: p.Cgroup, Verdict: Blocked}
		switch id := c.ids[p.NIC]; {
		case p.State == StateUnpinned:
			continue
		case p.State == StatePinned && id != 0:
			g.Verdict, g.NIC, g.Except = Pinned, id, p.Except
		}
		fw.Groups = append(fw.Groups, g)
	}
	slices.SortFunc(fw.Groups, func(a, b Group) int { return cmp.Compare(a.Cgroup.ID, b.Cgroup.ID) })
	for i, n := range fw.NICs {
		nic, _ := c.in.Host.NIC(n.Name)
		fw.NICs[i].Addr4, _ = nic.Addr(model.IPv4)
		fw.NICs[i].Addr6, _ = nic.Addr(model.IPv6)
	}
}
