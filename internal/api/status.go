// Package api is what the daemon tells the outside: a JSON document over HTTP
// on a unix socket, and the client with which the CLI reads it.
package api

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// Status is what `eipnet status --json` prints. Fields may be added.
type Status struct {
	Version   string             `json:"version"`
	Docker    string             `json:"docker,omitempty"` // engine version, empty while it does not answer
	Pass      Pass               `json:"pass"`
	NICs      []NIC              `json:"nics"`
	Networks  []Network          `json:"networks"`
	Endpoints []Endpoint         `json:"endpoints"`
	Counters  map[string]Counter `json:"counters"` // packets that were refused or dropped, by reason
	Except    []netip.Prefix     `json:"except"`   // destinations that follow the host's routing
	Problems  []model.Problem    `json:"problems"`
}

// Pass is the last look at everything.
type Pass struct {
	At      time.Time `json:"at"`
	TookMS  float64   `json:"took_ms"`
	Changed bool      `json:"changed"`
	Error   string    `json:"error,omitempty"`
}

// Counter counts dropped packets.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// NIC is a NIC of the host.
type NIC struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac"`
	Addresses []netip.Prefix `json:"addresses"`
	Public    []netip.Addr   `json:"public,omitempty"`
	Primary   bool           `json:"primary"`
	Up        bool           `json:"up"`
	// Health is what is wrong with a NIC that has fallbacks or is one.
	Health    string     `json:"health,omitempty"`
	Managed   bool       `json:"managed"`
	Mark      string     `json:"mark,omitempty"`
	Table     uint32     `json:"table,omitempty"`
	Gateway   netip.Addr `json:"gateway,omitzero"`
	GatewayBy string     `json:"gateway_source,omitempty"`
	Gateway6  netip.Addr `json:"gateway6,omitzero"`
}

// Network is a network of ours.
type Network struct {
	ID      string            `json:"id"`
	Name    string            `json:"name,omitempty"`
	Stock   bool              `json:"stock"`  // made by Docker's own bridge driver
	Strict  bool              `json:"strict"` // nothing leaves that is not decided
	Local   bool              `json:"local"`  // a host entry's
	Bridge  string            `json:"bridge"`
	Subnets []netip.Prefix    `json:"subnets"`
	Options map[string]string `json:"options,omitempty"`
}

// Endpoint is a container on a network of ours, or one with eip.* labels on the
// host's network, be it pinned or not, which has neither bridge nor address.
type Endpoint struct {
	ID        string         `json:"id"`
	Container string         `json:"container"`
	NetworkID string         `json:"network_id"`
	Bridge    string         `json:"bridge"`
	Addresses []netip.Addr   `json:"addresses"`
	State     plan.State     `json:"state"`
	NIC       string         `json:"nic,omitempty"`
	LeavesAs  []netip.Addr   `json:"leaves_as,omitempty"`
	Public    netip.Addr     `json:"public,omitzero"`
	Selector  string         `json:"selector,omitempty"`
	From      model.Level    `json:"from,omitempty"`
	Ports     []string       `json:"ports,omitempty"`
	Except    []netip.Prefix `json:"except,omitempty"`
	Why       string         `json:"why,omitempty"`
	InsteadOf string         `json:"instead_of,omitempty"` // the selector that was asked for, of one that has failed over
	// NotGateway: the container has ports to publish, and Docker has another of
	// its networks carry them, with its default route.
	NotGateway bool `json:"not_gateway,omitempty"`
}

// Build renders the result of a pass.
func Build(res *reconcile.Result, settings plan.Settings) Status {
	s := Status{
		Pass:      Pass{At: res.At, TookMS: float64(res.Took.Microseconds()) / 1000, Changed: res.Changed},
		NICs:      []NIC{},
		Networks:  []Network{},
		Endpoints: []Endpoint{},
		Except:    settings.Except,
		Problems:  append([]model.Problem{}, res.Problems...),
	}
	if res.Err != nil {
		s.Pass.Error = res.Err.Error()
	}
	for _, n := range res.Host.NICs {
		nic := buildNIC(n, res.Desired, settings)
		nic.Health = res.Health(n.Name).Why
		s.NICs = append(s.NICs, nic)
	}
	bridges, internal := make(map[string]string), make(map[string]bool)
	fw := res.Desired.Firewall
	for _, n := range res.Networks {
		watched := slices.Contains(fw.Watched, n.Bridge)
		if !watched && !n.Local && !slices.Contains(fw.Locked, n.Bridge) {
			continue // a stock network that nobody asked about
		}
		bridges[n.ID], internal[n.ID] = n.Bridge, n.Internal
		net := Network{ID: n.ID, Name: n.Name, Bridge: n.Bridge, Stock: n.Stock, Strict: !watched, Local: n.Local, Options: n.Options}
		for _, sub := range n.Subnets() {
			net.Subnets = append(net.Subnets, sub.Prefix)
		}
		s.Networks = append(s.Networks, net)
	}
	ports := make(map[string][]string)
	for _, p := range res.Published {
		ports[p.Endpoint] = append(ports[p.Endpoint], Port(p.Forward))
	}
	pins := make(map[string]plan.Pin)
	for _, p := range res.Desired.Pins {
		pins[p.Endpoint] = p
	}
	for _, e := range res.Endpoints {
		if bridges[e.NetworkID] == "" || slices.Contains(fw.Watched, bridges[e.NetworkID]) && pins[e.ID].State == plan.StateUnpinned {
			continue
		}
		ep := buildEndpoint(e, pins[e.ID], bridges[e.NetworkID], ports[e.ID])
		ep.NotGateway = ep.NotGateway && !internal[e.NetworkID]
		s.Endpoints = append(s.Endpoints, ep)
	}
	for _, p := range res.Desired.HostPins {
		on := model.Endpoint{ID: p.Container.ID, NetworkID: "host", Container: p.Container}
		s.Endpoints = append(s.Endpoints, buildEndpoint(on, p.Pin, "", nil))
	}
	slices.SortStableFunc(s.Endpoints, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare))
	})
	return s
}

func buildEndpoint(e model.Endpoint, p plan.Pin, bridge string, ports []string) Endpoint {
	out := Endpoint{
		ID: e.ID, Container: e.Name(), NetworkID: e.NetworkID, Bridge: bridge,
		State: p.State, NIC: p.NIC, Public: p.Public, Selector: p.Selector.String(), From: p.From, Why: p.Why, InsteadOf: p.InsteadOf,
		Ports: ports, Except: p.Except,
		NotGateway: e.WantsPorts && e.Phase == model.Joined && len(e.Publishes) == 0,
	}
	for _, f := range model.Families {
		if a, ok := e.Addr(f); ok {
			out.Addresses = append(out.Addresses, a)
		}
		if a := p.Addr(f); a.IsValid() {
			out.LeavesAs = append(out.LeavesAs, a)
		}
	}
	return out
}

func buildNIC(n model.NIC, d plan.Desired, settings plan.Settings) NIC {
	out := NIC{
		Name: n.Name, MAC: n.MAC, Addresses: n.Addrs, Primary: n.Primary, Up: n.Up && n.Carrier,
		Managed: slices.Contains(d.Links.Grouped, n.Name),
		Gateway: n.Gateway4.Addr, GatewayBy: n.Gateway4.Source, Gateway6: n.Gateway6.Addr,
	}
	if id := d.IDs[n.Name]; out.Managed {
		out.Mark, out.Table = settings.Mask.Of(id).String(), uint32(id.Table())
	}
	for public, private := range settings.EIPs {
		if n.Has(private) {
			out.Public = append(out.Public, public)
		}
	}
	slices.SortFunc(out.Public, netip.Addr.Compare)
	return out
}

// Port renders a published port as `docker ps` does: 172.31.0.14:8090->8080/tcp.
func Port(f plan.Forward) string {
	return netip.AddrPortFrom(f.Addr, f.Port).String() + "->" + strconv.Itoa(int(f.To.Port())) + "/" + f.Proto.String()
}
