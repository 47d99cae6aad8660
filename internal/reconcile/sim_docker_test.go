package reconcile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// engine is Docker: what it has, and how it calls the driver.
type engine struct {
	*sim
	up         bool // the API answers
	mute       bool // it takes questions and answers none, as at boot
	random     bool // a container gets another MAC address each time that it is started
	made       int  // ids so far
	networks   map[string]*dockerNetwork
	containers map[string]*dockerContainer
	freed      map[netip.Addr]time.Time
	moves      func(*dockerContainer) // is called before a network may change what is said of a container
}

type dockerNetwork struct {
	id, name, bridge string
	ours             bool
	seen             bool // by eipnet, for sure
	subnet           netip.Prefix
	options          map[string]string
}

type dockerContainer struct {
	id, name string
	labels   map[string]string
	ports    []model.Publish
	networks []string // that it is to be on, by name
	running  bool
	at       []*attachment
}

// attachment is an endpoint of a running container.
type attachment struct {
	network  *dockerNetwork
	endpoint string
	addr     netip.Addr
	options  map[string]string
	veth     string // of a stock network
	mac      string
	blind    bool // it began while the kernel refused the table
}

type object = map[string]any

func (c *dockerContainer) model() model.Container {
	return model.Container{Known: true, ID: c.id, Name: c.name, Labels: maps.Clone(c.labels)}
}

func (n *dockerNetwork) gateway() netip.Addr { return n.subnet.Addr().Next() }

func (n *dockerNetwork) model() model.Network {
	return model.Network{ID: n.id, Name: n.name, Stock: true, Bridge: n.bridge, Subnet4: n.subnet, Gateway4: n.gateway(), Options: n.options}
}

func (e *engine) id(kind string) string {
	e.made++
	return fmt.Sprintf("%s%09d%s", kind, e.made, strings.Repeat("f", 50))
}

// owner finds the container of an endpoint. The sim is locked.
func (e *engine) owner(endpoint string) *dockerContainer {
	for _, c := range e.containers {
		if slices.ContainsFunc(c.at, func(a *attachment) bool { return a.endpoint == endpoint }) {
			return c
		}
	}
	return nil
}

// list is what the API tells. The sim is locked.
func (e *engine) list() *reconcile.DockerView {
	v := &reconcile.DockerView{Containers: make(map[string]model.Container)}
	for _, name := range sorted(e.networks) {
		if n := e.networks[name]; !n.ours {
			v.Stock = append(v.Stock, n.model())
		}
	}
	for _, name := range sorted(e.containers) {
		c := e.containers[name]
		for _, a := range c.at {
			v.Containers[a.endpoint] = c.model()
			if a.network.ours {
				continue
			}
			v.Endpoints = append(v.Endpoints, model.Endpoint{
				ID: a.endpoint, NetworkID: a.network.id, Addr4: a.addr, MAC: a.mac, Phase: model.Joined, Container: c.model(), Options: a.options, OptionsKnown: true,
			})
		}
	}
	slices.SortFunc(v.Endpoints, func(a, b model.Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return v
}

func macOf(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// tell says on the event stream that something changed.
func (e *engine) tell() {
	e.do(func() {
		if e.daemon == nil || !e.up {
			return
		}
		select {
		case e.daemon.news <- struct{}{}:
		default:
		}
	})
}

var errRefused = errors.New("connection refused")

// call makes one call of the driver's protocol.
func (e *engine) call(name string, req object) error {
	var d *daemon
	e.do(func() {
		if d = e.daemon; d != nil && d.dead {
			d = nil
		}
	})
	if d == nil {
		return errRefused
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/NetworkDriver."+name, strings.NewReader(string(body))))
	dead := false
	e.do(func() { dead = d.dead })
	switch {
	case dead:
		return errRefused // the answer never came
	case w.Code != http.StatusOK:
		return fmt.Errorf("%s: %s", name, strings.TrimSpace(w.Body.String()))
	}
	return nil
}

// createNetwork is docker network create; for stock networks the options are labels.
func (e *engine) createNetwork(name string, ours bool, subnet netip.Prefix, options map[string]string) error {
	var n *dockerNetwork
	e.do(func() {
		n = &dockerNetwork{id: e.id("n"), name: name, bridge: name, ours: ours, subnet: subnet, options: options}
		if !ours {
			n.bridge = "br-" + n.id[:12]
			e.kernel.add(n.bridge, simLink{kind: "bridge", up: true, addrs: []netip.Prefix{netip.PrefixFrom(n.gateway(), n.subnet.Bits())}})
			e.networks[name] = n
			e.poke()
		}
	})
	if !ours {
		e.tell()
		return nil
	}
	generic := object{"com.docker.network.bridge.name": n.bridge}
	for k, v := range options {
		generic[k] = v
	}
	err := e.call("CreateNetwork", object{
		"NetworkID": n.id, "Options": object{"com.docker.network.generic": generic},
		"IPv4Data": []object{{"Pool": n.subnet.String(), "Gateway": netip.PrefixFrom(n.gateway(), n.subnet.Bits()).String()}},
	})
	if err == nil {
		e.do(func() { e.networks[name] = n })
		e.tell()
	}
	return err
}

// removeNetwork is docker network rm of a network without containers.
func (e *engine) removeNetwork(name string) {
	var n *dockerNetwork
	e.do(func() {
		if n = e.networks[name]; !n.ours {
			e.kernel.remove(n.bridge)
			e.poke()
		}
	})
	if n.ours {
		_ = e.call("DeleteNetwork", object{"NetworkID": n.id}) // Docker forgets it whatever is answered
	}
	e.do(func() { delete(e.networks, name) })
	e.tell()
}

// begin is docker start.
func (e *engine) begin(c *dockerContainer) error {
	e.do(func() { c.running = true })
	for _, name := range c.networks {
		if err := e.connect(c, name); err != nil {
			e.end(c, true)
			return err
		}
	}
	return nil
}

// connect is docker network connect, and a part of docker start.
func (e *engine) connect(c *dockerContainer, name string) error {
	var a *attachment
	e.do(func() {
		n := e.networks[name]
		if n == nil {
			return
		}
		e.moves(c)
		a = &attachment{network: n, endpoint: e.id("e"), addr: e.free(n), blind: e.faults.table}
		c.at = append(c.at, a)
		if !n.ours {
			a.veth, a.mac = "veth"+a.endpoint[3:10], macOf(a.addr)
			if e.random { // MAC addresses, from Docker 28 on
				a.mac = fmt.Sprintf("06:00:00:00:%02x:%02x", e.made>>8, e.made&0xff)
			}
			e.kernel.add(a.veth, simLink{kind: "veth", master: n.bridge, mac: a.mac, up: true})
			e.poke()
		}
	})
	switch {
	case a == nil:
		return errors.New("no such network")
	case !a.network.ours:
		e.tell()
		return nil
	}
	ref := object{"NetworkID": a.network.id, "EndpointID": a.endpoint}
	create := object{"NetworkID": a.network.id, "EndpointID": a.endpoint, "Interface": object{"Address": netip.PrefixFrom(a.addr, a.network.subnet.Bits()).String()}}
	var ports []object
	for _, p := range c.ports {
		if a != c.at[0] {
			break // they belong to the endpoint with the default route
		}
		ports = append(ports, object{"Proto": p.Proto, "Port": p.Port, "HostPort": p.HostPort, "HostPortEnd": p.HostPort})
	}
	program := object{"NetworkID": a.network.id, "EndpointID": a.endpoint, "Options": object{"com.docker.network.portmap": ports}}
	for _, step := range []struct {
		name string
		req  object
	}{{"CreateEndpoint", create}, {"Join", ref}, {"ProgramExternalConnectivity", program}} {
		if err := e.call(step.name, step.req); err != nil {
			return err
		}
	}
	e.tell()
	return nil
}

// free is what IPAM gives: the lowest address that nobody has. On networks of
// Docker's own it does not come back at once: an engine takes the next one, and
// needs 200 ms for ending a container and starting another.
func (e *engine) free(n *dockerNetwork) netip.Addr {
	taken := make(map[netip.Addr]bool)
	for _, c := range e.containers {
		for _, a := range c.at {
			taken[a.addr] = true
		}
	}
	addr := n.gateway().Next()
	for taken[addr] || !n.ours && time.Since(e.freed[addr]) < 200*time.Millisecond {
		addr = addr.Next()
	}
	return addr
}

// end is docker stop: with told, the driver hears of it; else the engine died.
func (e *engine) end(c *dockerContainer, told bool) {
	for len(c.at) > 0 {
		e.disconnect(c, c.at[0], told)
	}
	e.do(func() { c.running = false })
	e.tell()
}

func (e *engine) disconnect(c *dockerContainer, a *attachment, told bool) {
	ref := object{"NetworkID": a.network.id, "EndpointID": a.endpoint}
	if told && a.network.ours {
		_ = e.call("RevokeExternalConnectivity", ref) // Docker goes on whatever is answered
		_ = e.call("Leave", ref)
	}
	e.do(func() { // the container's namespace goes
		if e.kernel.links[a.port()] != nil {
			e.kernel.remove(a.port())
			e.poke()
		}
	})
	if told && a.network.ours {
		_ = e.call("DeleteEndpoint", ref)
	}
	e.do(func() {
		c.at = slices.DeleteFunc(c.at, func(o *attachment) bool { return o == a })
		e.freed[a.addr] = time.Now()
	})
	e.tell()
}

// port is the container's port of the bridge.
func (a *attachment) port() string {
	if a.network.ours {
		return hostVeth(a.endpoint)
	}
	return a.veth
}

// hostVeth is what the driver calls an endpoint's link.
func hostVeth(endpoint string) string { return "eipv" + endpoint[:11] }
