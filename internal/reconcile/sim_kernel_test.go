package reconcile_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// kernel is what the sim's kernel holds. It takes routes with a link that goes
// down or away, as the real one does, and leaves rules alone.
type kernel struct {
	links   map[string]*simLink
	index   int // of the last link
	rules   map[plan.Rule]bool
	routes  map[plan.Route]bool // of ours
	table   *plan.Firewall      // table inet eipnet; nil: there is none
	spoof   []plan.BridgePort
	accepts []string // in DOCKER-USER
	sysctls map[string]string
	flows   map[flow]bool
	foreign map[reservation]bool // host ports that other processes have
}

type simLink struct {
	kind        string // "nic", "bridge", "veth"
	alias       string // of ours
	index       int
	up, carrier bool
	mute        bool // its gateway answers nothing
	group       int
	master      string
	mac         string
	addrs       []netip.Prefix
	gateway     netip.Addr
}

// flow is a connection that conntrack knows.
type flow struct {
	endpoint string
	from     netip.Addr // the container's
	address  netip.Addr // what it leaves with
}

type reservation struct {
	proto model.Proto
	addr  netip.Addr
	port  uint16
}

func newKernel() *kernel {
	k := &kernel{
		links: make(map[string]*simLink), rules: make(map[plan.Rule]bool), routes: make(map[plan.Route]bool), flows: make(map[flow]bool),
		sysctls: map[string]string{"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/rp_filter": "1"}, foreign: make(map[reservation]bool),
	}
	for name, at := range map[string][2]string{
		"eth0": {"172.31.0.8/20", "172.31.0.1"}, "eth1": {"172.31.0.14/20", "172.31.0.1"}, "eth2": {"10.9.0.21/24", "10.9.0.1"},
	} {
		k.plug(name, netip.MustParsePrefix(at[0]), netip.MustParseAddr(at[1]))
	}
	return k
}

// add makes a link with the switches that the kernel gives it.
func (k *kernel) add(name string, l simLink) *simLink {
	k.index++
	l.index = k.index
	k.links[name] = &l
	for key, v := range map[string]string{"rp_filter": "1", "arp_ignore": "0", "arp_announce": "0", "route_localnet": "0"} {
		k.sysctls["net/ipv4/conf/"+name+"/"+key] = v
	}
	return &l
}

func (k *kernel) plug(name string, addr netip.Prefix, gateway netip.Addr) {
	k.add(name, simLink{kind: "nic", up: true, carrier: true, mac: fmt.Sprintf("02:00:00:00:00:%02x", k.index+1), addrs: []netip.Prefix{addr}, gateway: gateway})
}

// remove deletes a link, its switches and its routes, and frees its ports.
func (k *kernel) remove(name string) {
	delete(k.links, name)
	maps.DeleteFunc(k.sysctls, func(path, _ string) bool { return strings.HasPrefix(path, "net/ipv4/conf/"+name+"/") })
	k.unroute(name)
	for _, l := range k.links {
		if l.master == name {
			l.master = ""
		}
	}
}

func (k *kernel) unroute(name string) {
	maps.DeleteFunc(k.routes, func(r plan.Route, _ bool) bool { return r.Dev == name })
}

// rename gives a link another name; what hangs on the link goes with it.
func (k *kernel) rename(from, to string) {
	k.links[to] = k.links[from]
	delete(k.links, from)
	for r := range maps.Clone(k.routes) {
		if r.Dev == from {
			delete(k.routes, r)
			r.Dev = to
			k.routes[r] = true
		}
	}
	for path, v := range maps.Clone(k.sysctls) {
		if key, ok := strings.CutPrefix(path, "net/ipv4/conf/"+from+"/"); ok {
			delete(k.sysctls, path)
			k.sysctls["net/ipv4/conf/"+to+"/"+key] = v
		}
	}
}

// primary is the NIC of main's default route.
func (k *kernel) primary() string {
	if l := k.links["eth0"]; l != nil && l.up && len(l.addrs) > 0 {
		return "eth0"
	}
	return ""
}
