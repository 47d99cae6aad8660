// Package plan decides what the kernel should hold. [Compute] is pure: what
// was observed and asked for goes in, the desired state and a list of problems
// come out, the same for the same input, sorted, and comparable. It knows no
// kernel, no Docker, no clock and no log; the appliers (snat, internal/route,
// internal/host, driver's ports) read its Desired and know nothing of each other.
package plan

import (
	"net/netip"

	"github.com/eipnet/eipnet/internal/model"
)

// Snapshot is everything that a pass looks at.
type Snapshot struct {
	Settings  Settings
	Host      model.Host
	IDs       map[string]model.NICID // NIC name → ID, as remembered from earlier passes
	Networks  []model.Network
	Endpoints []model.Endpoint
	Strays    []model.Stray
	// Cgroups are those of strays on the host's network, by container id, as far as they are there. The zero
	// one is that of a container that may have ended just now.
	Cgroups map[string]model.Cgroup
	// HostPinned: something was decided about a container on the host's network before, whose connections may outlive it.
	HostPinned bool
	Beside     []model.Beside // all containers on such networks, pinned or not
	Rebinds    []model.Rebind
	Health     map[string]model.Health // by NIC name; those that are not there are healthy
	Stay       map[string]Stay         // by container id
	// Leaving are the endpoints, by id, whose connections may still bear the
	// address of a NIC that they were pinned to.
	Leaving map[string]bool
	// Lost are the endpoints, by id, that the kernel had pinned when the state was
	// lost, beside those that Rebinds name.
	Lost map[string]bool
	// DockerUp: Docker's API has answered since we started, so Docker has
	// switched ip_forward (and its FORWARD policy) as it wanted to.
	DockerUp bool
}

// Settings are the daemon's flags, as far as they decide anything.
type Settings struct {
	Mask        model.Mask
	Except      []netip.Prefix            // destinations that follow the host's main routing
	HostReplies HostReplies               // --host-replies
	EIPs        map[netip.Addr]netip.Addr // public → private address (--eip)
	// StrictNetworks are stock networks, by name or id, under lock 1 though
	// they bear no label (--strict-networks).
	StrictNetworks []string
	// Cgroups: the kernel and the host's hierarchy of control groups let
	// containers on the host's network be told from its programs. Else NoCgroups
	// says what they lack: of the two exactly one is not zero.
	Cgroups   bool
	NoCgroups string
}

// HostReplies says for which NICs a host service's answers leave by the NIC they were asked on.
type HostReplies string

// The values of --host-replies.
const (
	RepliesSecondary HostReplies = "secondary" // managed NICs but the primary
	RepliesOff       HostReplies = "off"
)

// Desired is the state that the host should be in.
type Desired struct {
	Links    Links
	Routing  Routing
	Firewall Firewall
	Sysctls  []Sysctl
	Ports    []Port       // host ports to reserve
	Spare    []Port       // host ports to reserve for who is not decided yet, and not to forward
	Bridges  []BridgePort // anti-spoofing, sorted by name

	// IDs are the managed NICs' IDs: remembered ones kept, new ones given.
	// They are persisted before anything that contains them is applied.
	IDs map[string]model.NICID
	// Asked are the NICs that are, or would be, managed: their gateways have to
	// be looked for. Sorted.
	Asked []string
	// Watch are the NICs whose health matters: those that have fallbacks, and
	// the fallbacks, be they there or not. Sorted.
	Watch []string
	// Pins is what was decided for each endpoint, sorted by endpoint id.
	Pins []Pin
	// HostPins is what was decided for containers on the host's network, sorted by container id.
	HostPins []HostPin
}

// HostPin is what was decided for a container on the host's network: pinned, held or unpinned.
type HostPin struct {
	Container model.Container
	Cgroup    model.Cgroup
	Pin
}

// Links are the devices of ours, and marks on NICs.
type Links struct {
	Null    bool         // model.NullDevice exists
	Bridges []BridgeLink // sorted by name
	Veths   []VethPort   // sorted by name
	Grouped []string     // managed NICs, to be in model.NICGroup; sorted
}

// BridgeLink is a bridge to exist, up, with these addresses.
type BridgeLink struct {
	Name      string
	NetworkID string // recorded in the ifalias
	MTU       int    // 0: the kernel's default
	NoIPv6    bool   // not even a link-local address
	Addrs     []netip.Prefix
}

// VethPort is the host's end of a joined endpoint, and the bridge that it belongs on.
type VethPort struct {
	Name, Bridge string
	Isolated     bool // from the bridge's other isolated ports
}

// Routing is all ip rules and routes with protocol model.Protocol.
type Routing struct {
	Rules  []Rule
	Routes []Route
}

// Action says what an ip rule does.
type Action uint8

// The rule actions.
const (
	Lookup Action = iota
	Goto
	Nop
)

// Rule is one ip rule. It is comparable; two rules that differ in any field are two rules.
//
//	5110: from all fwmark 0x1000000/0xff000000 lookup 8101
type Rule struct {
	Family   model.Family
	Priority int
	From     netip.Prefix // zero: all
	Iif      string
	Mark     model.Mark // with Mask; both zero: any
	Mask     model.Mask
	Action   Action
	Table    model.Table // Lookup: the table
	Target   int         // Goto: the priority
	// SuppressSpecific makes the lookup pass over default routes and over
	// routes by managed NICs (suppress_prefixlength 0 suppress_ifgroup 45).
	SuppressSpecific bool
}

// Route is one route of ours. The zero Dev with Unreachable is the backstop.
type Route struct {
	Family      model.Family
	Table       model.Table
	Dst         netip.Prefix
	Dev         string
	Via         netip.Addr // zero: on the link
	Src         netip.Addr
	Metric      int
	Unreachable bool
}

// BackstopMetric is the metric of the unreachable default route that answers
// when a NIC's own routes are gone.
const BackstopMetric = 4294967295

// Firewall is what both firewall backends render: marks, NAT, ports and guard.
// All lists are sorted and free of duplicates.
type Firewall struct {
	Mask    model.Mask
	NICs    []FirewallNIC // managed
	Primary string        // the NIC that the host leaves by; empty: none
	Uplinks []Uplink      // every NIC of the host, managed or not, with each of its addresses
	Locked  []string      // bridges under lock 1: ours, and strict stock ones
	Watched []string      // other stock bridges with a pinned container
	Ours    []string      // bridges of our own networks
	// Internal are the bridges of networks that say --internal, ours and Docker's.
	Internal []string
	Inside   []string // all container bridges: ours and Docker's; where there is a Local, the loopback, too
	// Local are addresses of the host's own programs (host entries).
	Local []netip.Addr
	// Own is what the guard judges: subnets of locked bridges, and on watched
	// ones the addresses about which something was said.
	Own        []netip.Prefix
	OurSubnets []netip.Prefix // subnets of our own networks
	// Masqueraded is what never leaves the host with its own address: subnets of
	// our own networks, and pinned addresses where those have no masquerade.
	Masqueraded []netip.Prefix
	Apart       []string // bridges of ours whose containers do not reach each other
	Except      []netip.Prefix
	ExceptBy    []Exception
	Sources     []Source
	// Forwards are published ports.
	Forwards []Forward
	// Proxied are ports that a proxy alone has: its answers leave by the NIC that was asked.
	Proxied []Listener
	// Cgroups: the chains for containers on the host's network are there, and
	// Groups are those that are pinned or held, by their ids.
	Cgroups bool
	Groups  []Group
	// NoForward are the families of which nothing is forwarded but what comes from
	// or goes to container bridges: eipnet, and nobody else, switched it on.
	NoForward []model.Family
}

// FirewallNIC is a managed NIC.
type FirewallNIC struct {
	ID   model.NICID
	Name string
	// HostReplies: connections to the host itself by this NIC are marked, so
	// that their answers leave by it.
	HostReplies bool
	// Addr4 and Addr6 are what containers on the host's network leave with; only where there are any.
	Addr4, Addr6 netip.Addr
}

// Uplink is an address of a NIC.
type Uplink struct {
	NIC  string
	Addr netip.Addr
}

// Verdict says what becomes of a source's packets.
type Verdict uint8

// The verdicts. A source that is in no list is pending.
const (
	Pinned  Verdict = iota // by NIC with Address
	ViaHost                // known as unpinned: host's routing, masqueraded
	Pending                // not decided yet: dropped silently
	Blocked                // held for good: refused at once
)

// Source is the decision for one container address.
type Source struct {
	Addr    netip.Addr
	Verdict Verdict
	NIC     model.NICID // Pinned
	NICName string      // Pinned
	Address netip.Addr  // Pinned: what its packets leave with
	Stock   bool        // on a network that Docker made
}

// Group is the decision for one container on the host's network.
type Group struct {
	Cgroup  model.Cgroup
	Verdict Verdict     // Pinned, or else held
	NIC     model.NICID // Pinned; its packets leave with the NIC's first addresses
	Except  []netip.Prefix
}

// Exception lets one source reach a destination by the host's main routing.
type Exception struct {
	Source netip.Addr
	To     netip.Prefix
}

// Forward is one published port: a destination NAT.
type Forward struct {
	Proto model.Proto
	// Addr is the host address; unspecified (0.0.0.0, ::) means every local one.
	Addr netip.Addr
	Port uint16
	To   netip.AddrPort
}

// Listener is a port of the host's own, at an IPv6 address or, unspecified, at all.
type Listener struct {
	Addr  netip.Addr
	Proto model.Proto
	Port  uint16
}

// Forwarding6 is the path of the switch for IPv6 forwarding. It is set after
// all others, and not unless they could be set, as it changes what accept_ra
// means; it is put back before all others.
const Forwarding6 = "net/ipv6/conf/all/forwarding"

// Sysctl is a switch to be at Value, where it now has one of the values in
// From; any other value is somebody's choice that serves as well.
type Sysctl struct {
	Path  string // below /proc/sys
	From  []string
	Value string
}

// Port is a host port to be reserved with a bound socket, and the forward that
// needs it: NAT's, a proxy's, or of both.
type Port struct {
	Endpoint string
	Forward  Forward
	Proxy    Proxy
	// Yields: nobody asked for this address, and NAT's ports there go first.
	Yields bool
}

// Proxy says what of a TCP or UDP port a proxy takes to the container: what NAT cannot.
type Proxy uint8

// What a proxy takes.
const (
	NoProxy       Proxy = iota
	ProxyLoopback       // what comes to ::1, from where the kernel routes nothing to a bridge
	ProxyAll            // everything: a port of ::1 alone, or one of IPv6 whose container has IPv4 only
)

// BridgePort is a port of a container bridge, and what the container behind it
// may claim to be.
type BridgePort struct {
	Bridge, Name string
	MAC          string
	Addrs        []netip.Addr
	// Only: nothing but these addresses and this MAC may come in. Otherwise
	// just nobody else on the bridge may bear them.
	Only bool
	// Bound: nothing but these addresses gets by it to the host, and so to a NIC.
	Bound bool
}

// State says how an endpoint's pin stands.
type State string

// The states of a pin.
const (
	StatePinned   State = "pinned"
	StateUnpinned State = "unpinned"
	StatePending  State = "pending" // held: not decided yet, silent
	StateBlocked  State = "blocked" // held: cannot be satisfied, refused
	StateReleased State = "released"
)

// Pin is what was decided for one endpoint: what `eipnet status` shows.
type Pin struct {
	Endpoint string
	State    State
	Selector model.Selector
	From     model.Level // where the selector was written
	NIC      string
	Addr4    netip.Addr // what it leaves with; zero: IPv4 is held
	Addr6    netip.Addr
	Listen6  netip.Addr // where an endpoint without IPv6 is published: the NIC's; see Proxy
	Public   netip.Addr // EIP of Addr4, where known
	Except   []netip.Prefix
	Lost     bool   // blocked, as it was pinned and nothing says so any more: see Snapshot
	Leaving  bool   // pending until its connections by the NIC that it had are forgotten
	Why      string // of pending and blocked, and of what is not as asked for
	// InsteadOf is the selector that was asked for, of a pin that has failed over.
	InsteadOf string
}
