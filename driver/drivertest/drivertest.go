// Package drivertest has a small world for the driver to live in: a store, a
// core, links and a Docker that behave like the real ones, without a kernel.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

// World is all of it. Its parts see each other: a pass makes the stored
// networks' bridges, and a veth needs its bridge.
type World struct {
	Store  *Store
	Core   *Core
	Links  *Links
	Labels *Labels
}

// New returns a world with two NICs, eth0 172.31.0.8 and eth1 172.31.0.14 (EIP
// 119.26.38.75), and a tunnel wg0, in which Docker is up and knows no container.
func New() *World {
	store := &Store{networks: map[string]model.Network{}, endpoints: map[string]model.Endpoint{}, rebinds: map[string]model.Rebind{}, NICs: map[string]bool{}}
	core := &Core{store: store, bridges: map[string]bool{}, broken: map[string]error{}, portErrors: map[string]error{}, Observed: model.Host{
		Links: []string{"docker0", "eth0", "eth1", "lo", "wg0"},
		NICs: []model.NIC{
			{Name: "eth0", Index: 2, MAC: "02:00:00:00:00:08", Up: true, Carrier: true, Primary: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.8/20")}},
			{Name: "eth1", Index: 3, MAC: "02:00:00:00:00:14", Up: true, Carrier: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.14/20")}},
		},
		Bridges: []model.Bridge{{Name: "docker0", Subnets: []model.Subnet{{Prefix: netip.MustParsePrefix("172.17.0.0/16")}}}},
		Locals: []netip.Addr{
			netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("172.31.0.14"),
			netip.MustParseAddr("172.31.0.8"), netip.MustParseAddr("172.17.0.1"),
		},
	}}
	return &World{
		Store: store, Core: core,
		Links:  &Links{core: core, veths: map[string]driver.Veth{}},
		Labels: &Labels{up: true, containers: map[string]model.Container{}},
	}
}

// Options returns the parts as the driver takes them.
func (w *World) Options() driver.Options {
	return driver.Options{Store: w.Store, Core: w.Core, Links: w.Links, Labels: w.Labels}
}

// Store keeps networks and endpoints in memory, as copies.
type Store struct {
	mu        sync.Mutex
	networks  map[string]model.Network
	endpoints map[string]model.Endpoint
	rebinds   map[string]model.Rebind
	NICs      map[string]bool   // names that NICKnown knows; set before use
	Hosts     []model.HostEntry // set before use
	fail      error
}

// Fail makes all writes return err until it is nil.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Networks lists the networks by id.
func (s *Store) Networks() []model.Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	return list(s.networks, cloneNetwork)
}

// Network returns one network.
func (s *Store) Network(id string) (model.Network, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.networks[id]
	return cloneNetwork(n), ok
}

// PutNetwork stores a network.
func (s *Store) PutNetwork(n model.Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.networks[n.ID] = cloneNetwork(n)
	return nil
}

// DeleteNetwork forgets a network.
func (s *Store) DeleteNetwork(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		delete(s.networks, id)
	}
	return s.fail
}

// Endpoints lists the endpoints by id.
func (s *Store) Endpoints() []model.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return list(s.endpoints, cloneEndpoint)
}

// HostEntries lists Hosts.
func (s *Store) HostEntries() []model.HostEntry { return s.Hosts }

// Rebind tells what SetRebind said of a container.
func (s *Store) Rebind(containerID string) (model.Rebind, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rebinds[containerID]
	return r.Clone(), ok
}

// SetRebind says something of a container.
func (s *Store) SetRebind(r model.Rebind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rebinds[r.ContainerID] = r.Clone()
}

// Endpoint returns one endpoint.
func (s *Store) Endpoint(id string) (model.Endpoint, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	return cloneEndpoint(e), ok
}

// PutEndpoint stores an endpoint of a network that is there.
func (s *Store) PutEndpoint(e model.Endpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(e)
}

// UpdateEndpoint changes an endpoint that is there.
func (s *Store) UpdateEndpoint(id string, fn func(*model.Endpoint)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	if !ok {
		return nil
	}
	e = cloneEndpoint(e)
	fn(&e)
	e.ID = id
	return s.put(e)
}

func (s *Store) put(e model.Endpoint) error {
	if s.fail != nil {
		return s.fail
	}
	if _, ok := s.networks[e.NetworkID]; !ok {
		return fmt.Errorf("endpoint %s refers to network %s, which is not stored", e.ID, e.NetworkID)
	}
	s.endpoints[e.ID] = cloneEndpoint(e)
	return nil
}

// DeleteEndpoint forgets an endpoint.
func (s *Store) DeleteEndpoint(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		delete(s.endpoints, id)
	}
	return s.fail
}

// NICKnown looks into NICs.
func (s *Store) NICKnown(name string) bool { return s.NICs[name] }

// Core runs passes over the store: they make bridges and reserve ports.
type Core struct {
	store    *Store
	Observed model.Host // set before use; a pass adds the bridges to its links

	mu         sync.Mutex
	fail       []error
	hang       int
	passes     int
	bridges    map[string]bool
	seen       []string         // the bridges at the beginning of the last pass
	broken     map[string]error // by bridge
	foreign    []model.Publish
	portErrors map[string]error
}

// Fail makes the next passes return these errors, one each (nil: none).
func (c *Core) Fail(errs ...error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = errs
}

// Break makes what passes do about one bridge fail until err is nil: it is not
// made if it is not there, and they return err to who asks about it.
func (c *Core) Break(bridge string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken[bridge] = err
}

// Hang makes the next passes wait until their caller gives up.
func (c *Core) Hang(passes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hang = passes
}

// Take has another process bind these ports.
func (c *Core) Take(p ...model.Publish) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.foreign = p
}

// Passes counts the passes so far.
func (c *Core) Passes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passes
}

// Bridges lists the bridges that there are.
func (c *Core) Bridges() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.bridges))
}

// Sync runs a pass.
func (c *Core) Sync(ctx context.Context, subjects ...string) error {
	c.mu.Lock()
	hang := c.hang > 0
	if hang {
		c.hang--
	}
	c.mu.Unlock()
	if hang {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passes++
	if len(c.fail) > 0 {
		err := c.fail[0]
		c.fail = c.fail[1:]
		if err != nil {
			return err
		}
	}
	c.seen = slices.Sorted(maps.Keys(c.bridges))
	clear(c.bridges)
	for _, n := range c.store.Networks() {
		if c.broken[n.Bridge] == nil || slices.Contains(c.seen, n.Bridge) {
			c.bridges[n.Bridge] = true
		}
	}
	c.reserve()
	var errs []error
	for _, s := range subjects {
		errs = append(errs, c.broken[s])
	}
	return errors.Join(errs...)
}

// reserve gives each port to who held it before, else to the first endpoint by id.
func (c *Core) reserve() {
	type key struct {
		proto model.Proto
		addr  netip.Addr
		port  uint16
	}
	taken := make(map[key]model.Endpoint) // by whom
	for _, p := range c.foreign {
		taken[key{p.Proto, p.HostIP, p.HostPort}] = model.Endpoint{}
	}
	before := maps.Clone(c.portErrors)
	clear(c.portErrors)
	endpoints := c.store.Endpoints()
	slices.SortStableFunc(endpoints, func(a, b model.Endpoint) int {
		_, oldA := before[a.ID]
		_, oldB := before[b.ID]
		return boolOrder(oldB) - boolOrder(oldA)
	})
	for _, e := range endpoints {
		if len(e.Publishes) == 0 {
			continue
		}
		c.portErrors[e.ID] = nil
		for _, p := range e.Publishes {
			k := key{p.Proto, p.HostIP, p.HostPort}
			by, is := taken[k]
			if is && by.Container.ID != "" && by.Container.ID == e.Container.ID && by.NetworkID != e.NetworkID {
				continue // the container's own, on another network
			}
			if is {
				addr := p.HostIP
				if !addr.IsValid() {
					addr = netip.MustParseAddr("172.31.0.14")
				}
				c.portErrors[e.ID] = fmt.Errorf("Bind for %v failed: port is already allocated", netip.AddrPortFrom(addr, p.HostPort)) //nolint:staticcheck // Docker's text
				continue
			}
			taken[k] = e
		}
	}
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Host returns what is set as observed, and the bridges that the last pass saw
// before it made and deleted any.
func (c *Core) Host(context.Context) (model.Host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	host := c.Observed
	host.Links = append(slices.Clone(host.Links), c.seen...)
	return host, nil
}

// PortError returns what the last pass found.
func (c *Core) PortError(endpointID string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.portErrors[endpointID]
}

// EIPs maps the EIP of eth1.
func (c *Core) EIPs() map[netip.Addr]netip.Addr {
	return map[netip.Addr]netip.Addr{netip.MustParseAddr("119.26.38.75"): netip.MustParseAddr("172.31.0.14")}
}

func list[T any](m map[string]T, clone func(T) T) []T {
	var out []T
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, clone(m[k]))
	}
	return out
}

func cloneNetwork(n model.Network) model.Network {
	n.Options = maps.Clone(n.Options)
	return n
}

func cloneEndpoint(e model.Endpoint) model.Endpoint {
	e.Options = maps.Clone(e.Options)
	e.Container.Labels = maps.Clone(e.Container.Labels)
	e.Publishes = slices.Clone(e.Publishes)
	return e
}
