package model

import (
	"fmt"
	"net/netip"
	"strings"
)

// Network is a network made with `docker network create -d eipnet`, or a stock
// one: a network of Docker's own bridge driver.
type Network struct {
	ID       string            `json:"id"`
	Name     string            `json:"name,omitempty"`  // as Docker's API tells it
	Stock    bool              `json:"stock,omitempty"` // Docker made its bridge, ports and NAT
	Local    bool              `json:"local,omitempty"` // its one address is the host's own: a [HostEntry]
	Bridge   string            `json:"bridge"`
	Subnet4  netip.Prefix      `json:"subnet4,omitzero"`
	Gateway4 netip.Addr        `json:"gateway4,omitzero"`
	Subnet6  netip.Prefix      `json:"subnet6,omitzero"`
	Gateway6 netip.Addr        `json:"gateway6,omitzero"`
	Internal bool              `json:"internal,omitempty"`
	MTU      int               `json:"mtu,omitempty"`       // 0: the kernel's default
	IfPrefix string            `json:"if_prefix,omitempty"` // of interfaces in containers, default "eth"
	Options  map[string]string `json:"options,omitempty"`   // eip.* options; of a stock network its labels

	// Options of Docker's bridge driver, which eipnet networks have too.
	NoICC        bool       `json:"no_icc,omitempty"`        // containers do not reach each other but by published ports
	NoMasquerade bool       `json:"no_masquerade,omitempty"` // unpinned containers leave with their own addresses
	HostBinding  netip.Addr `json:"host_binding,omitzero"`   // host address of -p without one; zero: see plan
}

// Subnets lists the network's subnets, IPv4 first.
func (n Network) Subnets() []Subnet {
	var s []Subnet
	if n.Subnet4.IsValid() {
		s = append(s, Subnet{n.Subnet4, n.Gateway4})
	}
	if n.Subnet6.IsValid() {
		s = append(s, Subnet{n.Subnet6, n.Gateway6})
	}
	return s
}

// Phase is where in its life an endpoint stands.
type Phase string

// The phases. Only a joined endpoint may send anything off the host.
const (
	Created Phase = "created" // CreateEndpoint answered
	Joined  Phase = "joined"  // Join answered: veth made, pin decided or pending
	Left    Phase = "left"    // Leave answered: a tombstone until DeleteEndpoint
)

// Endpoint is a container's attachment to one of our networks.
type Endpoint struct {
	ID        string            `json:"id"`
	NetworkID string            `json:"network_id"`
	Addr4     netip.Addr        `json:"addr4,omitzero"`
	Addr6     netip.Addr        `json:"addr6,omitzero"`
	MAC       string            `json:"mac,omitempty"`
	Veth      string            `json:"veth,omitempty"` // host side
	Phase     Phase             `json:"phase"`
	Container Container         `json:"container,omitzero"`
	Options   map[string]string `json:"options,omitempty"` // eip.* endpoint driver options
	// OptionsKnown says that Options are told: on Docker's own networks it tells them late.
	OptionsKnown bool      `json:"-"`
	Publishes    []Publish `json:"publishes,omitempty"`
	// WantsPorts: the container has ports to publish; on which of its networks is Docker's choice.
	WantsPorts bool   `json:"wants_ports,omitempty"`
	As         string `json:"as,omitempty"` // a program's: the host entry whose NIC and ports it has
}

// Addr returns the endpoint's address of the family, if it has one.
func (e Endpoint) Addr(f Family) (netip.Addr, bool) {
	a := e.Addr4
	if f == IPv6 {
		a = e.Addr6
	}
	return a, a.IsValid()
}

// JoinedID is the id of the host entry that a program has joined; empty: none.
func (e Endpoint) JoinedID() string {
	if e.As == "" {
		return ""
	}
	return HostEntry{Name: e.As}.ID()
}

// Name returns what a person calls the endpoint: its container's name, else a short id.
func (e Endpoint) Name() string {
	if e.Container.Name != "" {
		return e.Container.Name
	}
	return "endpoint " + ShortID(e.ID)
}

// Container is what Docker's API tells of a container that has an endpoint of
// ours. Known is false until it told.
type Container struct {
	Known  bool              `json:"known,omitempty"`
	ID     string            `json:"id,omitempty"`
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"` // eip.* labels only, without the ignored ones
	// Ignored are eip.* labels that come from the image: an image must not
	// choose an address. "key=value", sorted.
	Ignored []string `json:"ignored,omitempty"`
}

// Stray is a container that has no endpoint of its own, and eip.* labels that
// somebody gave it. They can have an effect on the host's network only. There it
// is one, too, while its image cannot be read, so that nobody knows whose its
// labels are: it is not Known then and has none here.
type Stray struct {
	Container Container
	Mode      string // ModeHost, "none" or "container:ID"
	Running   bool   // its start is over
}

// ModeHost is the network mode of a container that has the host's network.
const ModeHost = "host"

// Cgroup is a control group of the hierarchy of version 2.
type Cgroup struct {
	ID    uint64 // the inode of its directory
	Level int    // below the root, which is 0
}

// Beside is a container's attachment to a network by which packets leave the
// host past everything of ours: a macvlan, an ipvlan, or one of another plugin.
type Beside struct {
	Container Container
	NetworkID string
	Network   string            // its name
	Driver    string            // its driver's
	Labels    map[string]string // the network's, eip.* only: they have no effect
}

// ShortID cuts a Docker id to the twelve characters that Docker shows.
func ShortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// Proto is an IP protocol number with ports.
type Proto uint8

// The protocols of Docker's port map.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Publish is one `-p` of a container: HostIP and HostPort as asked, before the pin decides the address.
type Publish struct {
	Proto    Proto      `json:"proto"`
	HostIP   netip.Addr `json:"host_ip,omitzero"` // zero: none given
	HostPort uint16     `json:"host_port"`
	Port     uint16     `json:"port"` // in the container
}

// String renders the publish as docker's -p takes it.
func (p Publish) String() string {
	var b strings.Builder
	if p.HostIP.IsValid() {
		b.WriteString(netip.AddrPortFrom(p.HostIP, p.HostPort).String())
	} else {
		fmt.Fprint(&b, p.HostPort)
	}
	fmt.Fprintf(&b, ":%d/%v", p.Port, p.Proto)
	return b.String()
}
