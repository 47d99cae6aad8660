package reconcile

import (
	"slices"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// ports remembers, by endpoint of a stock network, by which port of its bridge
// it was reached. Docker tells late that an endpoint is gone, and not at all
// while its API is away, when its address may be somebody else's already. The
// port is gone with its container, and another container has another port, even
// where it has the same MAC address.
type ports map[string]port

type port struct {
	name string
	gone bool
}

// bridges lists the stock bridges to look at: those that concern us, and those
// with a port that is remembered. Sorted.
func (p ports) bridges(networks []model.Network, endpoints []model.Endpoint, fw plan.Firewall) []string {
	out := fw.StockBridges()
	for _, n := range networks {
		if n.Stock && slices.ContainsFunc(endpoints, func(e model.Endpoint) bool { return e.NetworkID == n.ID && p[e.ID].name != "" }) {
			out = append(out, n.Bridge)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// present marks endpoints as left whose port is gone. Peers are the ports of the
// bridges that were looked at, with the MAC addresses behind them; of other
// bridges it is as it was. An endpoint that was never seen behind a port is believed.
func (p ports) present(networks []model.Network, endpoints []model.Endpoint, bridges []string, peers map[string]string) []model.Endpoint {
	looked := make(map[string]bool)
	for _, n := range networks {
		looked[n.ID] = n.Stock && slices.Contains(bridges, n.Bridge)
	}
	free := make(map[string]string, len(peers)) // MAC → port of nobody's
	for name, mac := range peers {
		free[mac] = name
	}
	for _, port := range p {
		if mac := peers[port.name]; free[mac] == port.name {
			delete(free, mac)
		}
	}
	out, still := slices.Clone(endpoints), make(map[string]bool, len(p))
	for i, e := range out {
		at, seen := p[e.ID]
		if looked[e.NetworkID] {
			if !seen {
				at.name, seen = free[e.MAC]
				delete(free, e.MAC)
			}
			_, there := peers[at.name]
			at.gone = !there
		}
		if !seen {
			continue
		}
		p[e.ID], still[e.ID] = at, true
		if at.gone {
			out[i].Phase = model.Left
		}
	}
	for id := range p {
		if !still[id] {
			delete(p, id)
		}
	}
	return out
}
