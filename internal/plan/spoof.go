package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// bridgePorts lists who may bear which address: on our own networks each
// container just its own. On stock ones that concern us nobody may bear a
// pinned or held container's but its ports, on strict ones no container's, nor
// the gateway's but the bridge itself; all their ports are listed, as whoever is behind one of them might
// try. And a pinned or held container reaches the host with its own addresses
// only: another one would be a way around its pin.
//
// A container may bear each of its addresses on all its networks: when its
// default route moves to another one, what it has begun goes on by that.
func (c *compute) bridgePorts() []BridgePort {
	var out []BridgePort
	behind := make(map[string]int) // MAC → index in out; -1: several ports claim it
	for name, mac := range c.in.Host.Peers {
		out = append(out, BridgePort{Name: name, MAC: mac})
	}
	slices.SortFunc(out, func(a, b BridgePort) int { return cmp.Compare(a.Name, b.Name) })
	for i, p := range out {
		if _, twice := behind[p.MAC]; twice {
			i = -1
		}
		behind[p.MAC] = i
	}
	for _, n := range c.nets {
		if !n.Stock {
			continue
		}
		p := BridgePort{Bridge: n.Bridge, Name: n.Bridge}
		for _, s := range n.Subnets() {
			if s.Gateway.IsValid() {
				p.Addrs = append(p.Addrs, s.Gateway)
			}
		}
		out = append(out, p)
	}
	for _, group := range c.containers() {
		addrs := c.bears(group)
		for _, i := range group {
			e := c.in.Endpoints[i]
			n, known := c.networks[e.NetworkID]
			switch {
			case !known: // what the kernel has stays
			case !n.Stock && e.Phase == model.Joined && e.Veth != "":
				out = append(out, BridgePort{Bridge: n.Bridge, Name: e.Veth, MAC: e.MAC, Addrs: addrs, Only: true})
			case n.Stock && (c.concerns(i) || c.strict[n.ID] && e.Phase == model.Joined):
				if at, ok := behind[e.MAC]; ok && at >= 0 {
					out[at].Bridge, out[at].Addrs, out[at].Bound = n.Bridge, addrs, c.concerns(i)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b BridgePort) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// bears lists the addresses of a container, whose endpoints these are. One on a
// stock network that is nobody's business is none of them: what is claimed here
// could not be sent there.
func (c *compute) bears(group []int) []netip.Addr {
	var out []netip.Addr
	for _, i := range group {
		e := c.in.Endpoints[i]
		n, ok := c.networks[e.NetworkID]
		if !ok || e.Phase != model.Joined || n.Stock && !c.strict[n.ID] && !c.concerns(i) {
			continue
		}
		for _, f := range model.Families {
			if a, ok := e.Addr(f); ok {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// concerns reports whether an endpoint is pinned or held.
func (c *compute) concerns(i int) bool {
	s := c.pins[i].State
	return s != StateUnpinned && s != StateReleased
}

// StockBridges lists the bridges of stock networks that concern us: who is
// behind their ports has to be found out.
func (f Firewall) StockBridges() []string {
	return slices.DeleteFunc(slices.Concat(f.Locked, f.Watched), func(b string) bool { return slices.Contains(f.Ours, b) })
}
