package events

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// View is what Docker said in one full list, and in what was asked since about
// single networks. It is shared: do not change it.
type View struct {
	At time.Time // when the list was begun
	// Containers holds the container of every endpoint, by endpoint id. Known is
	// false where there is no such container: it was removed meanwhile, or the
	// endpoint is Docker's own, and Name is what the network says. It is false,
	// with its ID, for a container with eip.* labels whose image cannot be read.
	Containers map[string]model.Container
	Networks   map[string]Network // by id
	// Ours holds the network of every endpoint on a network of ours that a
	// container has in its namespace, by endpoint id.
	Ours map[string]string
	// Stock are the networks of Docker's own bridge driver, the default one
	// included, and Endpoints the endpoints on them that have an address. Sorted
	// by id. Options of an endpoint follow a moment after its container's start:
	// see driverOptions.
	Stock     []model.Network
	Endpoints []model.Endpoint
	// Strays are the containers that are one, see [model.Stray]. Sorted by container id.
	Strays []model.Stray
	// Beside are the containers, by network, that are on a network out of reach:
	// see beside. Sorted by network and container id.
	Beside []model.Beside
	// Exists are the ids of all containers, running or not, of the full list.
	Exists        map[string]bool
	EngineVersion string
}

// Network is a network of Docker's, whoever drives it.
type Network struct {
	ID     string
	Name   string
	Driver string
	Labels map[string]string // eip.* only
	Bridge string            // the host's link, where Docker's bridge driver made it
	// Unlisted: Docker answered an error about its endpoints. They are not gone:
	// Endpoints and Ours have those of the list before, and Containers lacks all others.
	Unlisted bool
}

// stockDriver is the name of Docker's own bridge driver.
const stockDriver = "bridge"

func (n Network) stock() bool { return n.Driver == stockDriver }

// Ours tells whether Docker means us by the driver's name: that of our socket, or
// that of a managed plugin ("eipnet/eipnet:latest"), whatever its repository and tag.
func (n Network) Ours() bool {
	name, _, _ := strings.Cut(path.Base(n.Driver), ":")
	return name == "eipnet"
}

func (n network) model() model.Network {
	out := model.Network{
		ID: n.ID, Name: n.Name, Stock: true, Bridge: n.Bridge, Internal: n.internal, Options: n.Labels,
	}
	for _, s := range n.subnets {
		v6 := model.FamilyOf(s.Prefix.Addr()) == model.IPv6
		switch {
		case v6 && !out.Subnet6.IsValid():
			out.Subnet6, out.Gateway6 = s.Prefix, s.Gateway
		case !v6 && !out.Subnet4.IsValid():
			out.Subnet4, out.Gateway4 = s.Prefix, s.Gateway
		}
	}
	return out
}

// told is what is known of an endpoint's container.
type told struct {
	container model.Container
	options   map[string]string // of the endpoint
}

func (v *View) clone() *View {
	out := *v
	out.Containers, out.Networks, out.Ours = maps.Clone(v.Containers), maps.Clone(v.Networks), maps.Clone(v.Ours)
	out.Stock, out.Endpoints = slices.Clone(v.Stock), slices.Clone(v.Endpoints)
	return &out
}

// add puts a network and its endpoints into a view that has none of them and is
// not shared yet. Endpoints of which nothing is told are left out.
func (v *View) add(n network, attached map[string]attachment, tell func(key string, a attachment) (told, bool)) {
	v.Networks[n.ID] = n.Network
	if n.stock() {
		v.Stock = append(v.Stock, n.model())
	}
	for key, a := range attached {
		if n.Ours() && !joining(key) {
			v.Ours[a.endpointID] = n.ID
		}
		t, ok := tell(key, a)
		if !ok {
			continue
		}
		v.Containers[a.endpointID] = t.container
		if n.stock() && (a.addr4.IsValid() || a.addr6.IsValid()) {
			v.Endpoints = append(v.Endpoints, model.Endpoint{
				ID:        a.endpointID,
				NetworkID: n.ID,
				Addr4:     a.addr4,
				Addr6:     a.addr6,
				MAC:       a.mac,
				Phase:     model.Joined,
				Container: t.container,
				Options:   t.options,
			})
		}
	}
}

func (v *View) sort() {
	slices.SortFunc(v.Stock, func(a, b model.Network) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(v.Endpoints, func(a, b model.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(v.Strays, func(a, b model.Stray) int { return cmp.Compare(a.Container.ID, b.Container.ID) })
	slices.SortFunc(v.Beside, func(a, b model.Beside) int {
		return cmp.Or(cmp.Compare(a.NetworkID, b.NetworkID), cmp.Compare(a.Container.ID, b.Container.ID))
	})
}

// patch is a network's endpoints as they were asked for since a list was begun.
type patch struct {
	begun    uint64
	network  network
	attached map[string]attachment
	fresh    map[string]told // by endpoint id: what was asked about containers
}

// apply replaces the network's endpoints in a view that is not shared yet. What
// neither view nor patch know more of than the address is left out: it has an
// event of its own, and a full list follows.
func (p patch) apply(v *View) {
	before := make(map[string]told)
	v.Endpoints = slices.DeleteFunc(v.Endpoints, func(e model.Endpoint) bool {
		if e.NetworkID != p.network.ID {
			return false
		}
		before[e.ID] = told{container: e.Container, options: e.Options}
		delete(v.Containers, e.ID)
		return true
	})
	maps.DeleteFunc(v.Ours, func(_, networkID string) bool { return networkID == p.network.ID })
	v.Stock = slices.DeleteFunc(v.Stock, func(n model.Network) bool { return n.ID == p.network.ID })
	v.add(p.network, p.attached, func(_ string, a attachment) (told, bool) {
		t, ok := before[a.endpointID]
		fresh, asked := p.fresh[a.endpointID]
		switch {
		case !asked, t.container.Known && !fresh.container.Known:
			return t, ok
		case t.container.Known && t.container.ID != fresh.container.ID: // remembered by a name that is another's now
			return t, ok
		}
		return fresh, true
	})
	v.sort()
}

// index finds containers by id and by name.
type index struct{ byID, byName map[string]listed }

func indexed(all []listed) index {
	x := index{make(map[string]listed, len(all)), make(map[string]listed, len(all))}
	for _, l := range all {
		x.byID[l.id], x.byName[l.name] = l, l
	}
	return x
}

func (x index) find(key string, a attachment) (listed, bool) {
	if l, ok := x.byID[key]; ok {
		return l, true
	}
	l, ok := x.byName[a.name]
	return l, ok && joining(key)
}

// options are the endpoint's own.
func (l listed) options(n Network) map[string]string {
	for _, m := range l.networks {
		if m.networkID == n.ID {
			return m.options
		}
	}
	if m, ok := l.networks[n.Name]; ok { // never started, or the network was made again since
		return m.options
	}
	for name, m := range l.networks { // docker run --network ID
		if len(name) >= len(model.ShortID(n.ID)) && strings.HasPrefix(n.ID, name) {
			return m.options
		}
	}
	return nil
}

// stray returns the network mode, as model.Stray has it, of a container that may
// be one: it has eip.* labels, whoever gave them, and a mode without endpoints.
func (x index) stray(l listed) (string, bool) {
	other, shared := strings.CutPrefix(l.mode, "container:")
	switch {
	case l.stopped || len(l.labels) == 0:
		return "", false
	case shared:
		if of, ok := x.byName[other]; ok && other != "" {
			other = of.id
		}
		return "container:" + other, true
	}
	return l.mode, l.mode == model.ModeHost || l.mode == "none"
}
