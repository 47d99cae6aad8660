package host

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// probeWait is how long one Observe waits for first answers of gateways, all NICs together.
const probeWait = 100 * time.Millisecond

// gateways fills in the NICs' next hops: what the administrator gave, else a
// default route, else a DHCP lease, else the gateway of another NIC in the
// same subnet, else the first address of the subnet, if it answers.
func (h *Host) gateways(ctx context.Context, t *tables, nics []model.NIC, managed []string) {
	for i := range nics {
		for _, f := range model.Families {
			setGateway(&nics[i], f, h.knownGateway(t, nics[i], f))
		}
	}
	borrowed := make([]model.NIC, len(nics))
	for i, n := range nics {
		borrowed[i] = n
		for _, f := range model.Families {
			if !n.Gateway(f).Addr.IsValid() {
				setGateway(&borrowed[i], f, gatewayOfOther(nics, n, f))
			}
		}
	}
	copy(nics, borrowed)

	asked := make(map[probeKey]int)
	for i, n := range nics {
		if !n.Up || !slices.Contains(managed, n.Name) {
			continue
		}
		for _, f := range model.Families {
			if key, ok := probeOf(n, f); ok && !n.Gateway(f).Addr.IsValid() {
				asked[key] = i
			}
		}
	}
	for key, answered := range h.probes.ask(ctx, asked, probeWait) {
		if answered {
			setGateway(&nics[asked[key]], model.FamilyOf(key.target), model.Gateway{Addr: key.target, Source: "first address"})
		}
	}
}

func setGateway(n *model.NIC, f model.Family, g model.Gateway) {
	if f == model.IPv6 {
		n.Gateway6 = g
		return
	}
	n.Gateway4 = g
}

// knownGateway looks where somebody wrote the gateway down.
func (h *Host) knownGateway(t *tables, n model.NIC, f model.Family) model.Gateway {
	if g := h.o.Gateways[n.Name]; g.IsValid() && model.FamilyOf(g) == f {
		return model.Gateway{Addr: g, Source: "config"}
	}
	if g := defaultRoute(t, n, f); g.IsValid() {
		return model.Gateway{Addr: g, Source: "route"}
	}
	if f == model.IPv4 && len(n.Addrs) > 0 {
		if g := h.leaseRouter(n); g.IsValid() {
			return model.Gateway{Addr: g, Source: "lease"}
		}
	}
	return model.Gateway{}
}

// defaultRoute returns the gateway of the NIC's best default route, of main rather than of another table.
func defaultRoute(t *tables, n model.NIC, f model.Family) netip.Addr {
	var best netip.Addr
	bestOther, bestMetric := true, 0
	for _, r := range t.routes {
		if r.LinkIndex != n.Index || !isDefault(r) || r.Gw == nil || model.FamilyOf(addr(r.Gw)) != f {
			continue
		}
		other := r.Table != unix.RT_TABLE_MAIN
		if !best.IsValid() || bestOther && !other || bestOther == other && r.Priority < bestMetric {
			best, bestOther, bestMetric = addr(r.Gw), other, r.Priority
		}
	}
	return best
}

// gatewayOfOther returns another NIC's gateway where it lies in a subnet of this NIC.
func gatewayOfOther(nics []model.NIC, n model.NIC, f model.Family) model.Gateway {
	for _, o := range nics {
		g := o.Gateway(f).Addr
		if o.Name == n.Name || !g.IsValid() || g.IsLinkLocalUnicast() || n.Has(g) {
			continue
		}
		for _, p := range n.Addrs {
			if !p.IsSingleIP() && p.Contains(g) {
				return model.Gateway{Addr: g, Source: "same subnet as " + o.Name}
			}
		}
	}
	return model.Gateway{}
}

// probeOf returns what to ask to find out whether the first host address of
// the NIC's subnet is there.
func probeOf(n model.NIC, f model.Family) (probeKey, bool) {
	for _, p := range n.Addrs {
		if model.FamilyOf(p.Addr()) != f {
			continue
		}
		first := p.Masked().Addr()
		if p.Bits() < p.Addr().BitLen()-1 { // a /31 or /127 has no network address
			first = first.Next()
		} else if first == p.Addr() {
			first = first.Next()
		}
		if p.IsSingleIP() || first == p.Addr() || n.Has(first) {
			return probeKey{}, false
		}
		return probeKey{index: n.Index, local: p, target: first}, true
	}
	return probeKey{}, false
}
