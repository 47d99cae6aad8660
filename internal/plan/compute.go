package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// Compute decides what the kernel should hold. It is total and deterministic:
// whatever cannot be satisfied is held and named in a Problem, never guessed.
func Compute(in Snapshot) (Desired, []model.Problem) {
	c := &compute{in: in, networks: make(map[string]model.Network), rebinds: make(map[string]model.Rebind), watch: make(map[string]bool)}
	for _, r := range in.Rebinds {
		c.rebinds[r.ContainerID] = r
	}
	for _, n := range in.Networks {
		c.networks[n.ID] = n
	}
	c.joinEntries()
	c.strict = c.strictNetworks()
	c.decide()
	c.hostPins = c.decideHost()
	c.nets = c.relevant()
	c.manage()
	c.strays()
	c.beside()
	c.elsewhere()
	c.unused()
	d := Desired{
		IDs:   c.ids,
		Asked: slices.Sorted(maps.Keys(c.asked)),
		Watch: slices.Sorted(maps.Keys(c.watch)),
		Pins:  c.pins,
		Ports: c.ports(),

		HostPins: c.hostPins,
	}
	d.Spare = c.spare(d.Ports)
	d.Links = c.links()
	d.Routing = c.routing()
	d.Firewall = c.firewall(d.Ports)
	d.Sysctls = c.sysctls(d.Ports)
	d.Bridges = c.bridgePorts()
	slices.SortFunc(c.problems, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text))
	})
	return d, slices.Compact(c.problems)
}

// joinEntries gives programs that have joined a host entry what is said of that
// now, its rebind included, in place of what it said when they came. Their own
// rebind counts more. One whose entry is gone keeps what it came with.
func (c *compute) joinEntries() {
	entries := make(map[string]model.Endpoint)
	for _, e := range c.in.Endpoints {
		if model.IsHostEntry(e.ID) {
			entries[e.ID] = e
		}
	}
	c.in.Endpoints = slices.Clone(c.in.Endpoints)
	for i := range c.in.Endpoints {
		e := &c.in.Endpoints[i]
		entry, there := entries[e.JoinedID()]
		if !there {
			continue
		}
		e.Options = entry.Options
		if entry.Phase == model.Joined {
			e.Publishes = entry.Publishes
		}
		if r, rebound := c.rebinds[entry.Container.ID]; rebound && len(c.rebinds[e.Container.ID].Options) == 0 {
			c.rebinds[e.Container.ID] = r
		}
	}
}

type compute struct {
	in       Snapshot
	networks map[string]model.Network
	rebinds  map[string]model.Rebind // by container id
	strict   map[string]bool         // stock networks under lock 1, by id
	nets     []model.Network         // those that concern us
	problems []model.Problem
	watch    map[string]bool // NICs whose health matters
	pins     []Pin           // parallel to in.Endpoints
	hostPins []HostPin
	asked    map[string]asked
	ids      map[string]model.NICID
	managed  []model.NIC // sorted by name, present on the host and with an ID
}

// asked says how a NIC was asked for.
type asked uint8

const (
	// byWildcard: a port published on all addresses is published on it too.
	// Such a NIC is managed where it has a gateway, as answers have to go back
	// by it; a link without one (a VPN's, say) has its ways in tables that we
	// do not know, and the host's own routing finds them. Its host sockets are
	// nobody's business.
	byWildcard asked = iota + 1
	// byName: a pin, an option, a published address or --nics names it.
	byName
)

func (c *compute) problem(code model.Code, sev model.Severity, subject, text, fix string) {
	c.problems = append(c.problems, model.Problem{Code: code, Severity: sev, Subject: subject, Text: text, Fix: fix})
}

// manage decides which NICs are managed: those that a pin, a network's option
// or a published port names, and those of --nics. It keeps remembered IDs and
// gives the lowest free ones to newcomers.
func (c *compute) manage() {
	c.asked = c.whoIsAsked()
	c.ids = maps.Clone(c.in.IDs)
	if c.ids == nil {
		c.ids = make(map[string]model.NICID)
	}
	for _, nic := range c.in.Host.NICs {
		switch c.asked[nic.Name] {
		case byName:
		case byWildcard:
			if !nic.Gateway4.Addr.IsValid() && !nic.Gateway6.Addr.IsValid() {
				continue
			}
		default:
			continue
		}
		if _, ok := c.ids[nic.Name]; !ok {
			id := c.freeID()
			if id == 0 {
				c.problem(model.CodeTooManyNICs, model.Failure, nic.Name, fmt.Sprintf("cannot be managed: %d NICs are already", model.MaxNICID), "pin containers to fewer NICs")
				continue
			}
			c.ids[nic.Name] = id
		}
		c.managed = append(c.managed, nic)
		c.checkGateways(nic)
	}
}

// freeID returns the lowest ID that no NIC has. Where all are taken, a NIC that
// nobody asks for now gives up its own; zero: there is none.
func (c *compute) freeID() model.NICID {
	used := make(map[model.NICID]string)
	for name, id := range c.ids {
		used[id] = name
	}
	for id := model.NICID(1); id <= model.MaxNICID; id++ {
		if used[id] == "" {
			return id
		}
	}
	for id := model.NICID(1); id <= model.MaxNICID; id++ {
		if name := used[id]; c.asked[name] == 0 {
			delete(c.ids, name)
			return id
		}
	}
	return 0
}

func (c *compute) checkGateways(nic model.NIC) {
	for _, f := range model.Families {
		if hasFamily(nic, f) && !nic.Gateway(f).Addr.IsValid() && (f == model.IPv4 || c.dual()) {
			c.problem(model.CodeNoGateway, model.Warning, nic.Name, fmt.Sprintf("no %v gateway is known: only its own subnet is reachable by it", f), "name it with --gateway "+nic.Name+"=ADDRESS")
		}
	}
}

// whoIsAsked collects the NICs that anybody asked for.
func (c *compute) whoIsAsked() map[string]asked {
	who := make(map[string]asked)
	ask := func(name string, how asked) { who[name] = max(who[name], how) }
	for _, n := range c.in.Host.NICs {
		// A fallback's way has to be there before it is needed.
		if n.Included || c.watch[n.Name] {
			ask(n.Name, byName)
		}
	}
	for _, n := range c.nets {
		if o, err := model.ParseNetworkOptions(n.Options); err == nil && !o.Selector.IsZero() {
			if nic, _, err := c.in.Host.Resolve(o.Selector, c.in.Settings.EIPs); err == nil {
				ask(nic.Name, byName)
			}
		}
	}
	for _, p := range c.hostPins {
		if p.State == StatePinned {
			ask(p.NIC, byName)
		}
	}
	for i, e := range c.in.Endpoints {
		p := c.pins[i]
		if p.State == StatePinned {
			ask(p.NIC, byName)
		}
		// Docker's own published ports of a pinned container count as ours do.
		for _, port := range c.forwards(e, p) {
			fwd := port.Forward
			for _, nic := range c.in.Host.NICs {
				switch {
				case nic.Has(fwd.Addr):
					ask(nic.Name, byName)
				case fwd.Addr.IsUnspecified() && hasFamily(nic, model.FamilyOf(fwd.Addr)):
					ask(nic.Name, byWildcard)
				}
			}
		}
	}
	return who
}

// dual reports whether any network of ours has IPv6.
func (c *compute) dual() bool {
	return slices.ContainsFunc(c.nets, func(n model.Network) bool { return n.Subnet6.IsValid() })
}

func hasFamily(n model.NIC, f model.Family) bool {
	_, ok := n.Addr(f)
	return ok
}

// families returns the families that are locked and routed: a bridge is locked
// for IPv6 too where no network has any, as a container could give itself an address.
func (c *compute) families() []model.Family {
	if c.in.Host.IPv6 {
		return model.Families[:]
	}
	return model.Families[:1]
}

// strays are containers whose labels can have no effect.
func (c *compute) strays() {
	for _, s := range c.in.Strays {
		fix, why := "put it on a bridge or eipnet network", "its network mode is "+s.Mode
		switch {
		case s.Mode == model.ModeHost && (c.in.Settings.Cgroups || !s.Container.Known):
			continue // see decideHost; or nobody knows whether the labels are its own
		case s.Mode == model.ModeHost:
			fix += "; a program of the host lives on one NIC by package nicdial, or eipnet exec (docs/programs.md)"
			why += ", and containers there cannot be told from the host's programs: " + c.in.Settings.NoCgroups
		case strings.HasPrefix(s.Mode, "container:"):
			fix = "label the container whose network it shares"
		}
		c.problem(model.CodeNoEndpoint, model.Warning, s.Container.Name, "its eip.* labels have no effect: "+why, fix)
	}
}
