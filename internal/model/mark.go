package model

import (
	"fmt"
	"math/bits"
)

// Ranges that eipnet takes in spaces shared with everybody else on the host.
// Neighbours are listed so that nobody has to find them out again.
const (
	// Protocol tags every ip rule and route of ours (rtnetlink rtm_protocol).
	// 201 is unassigned in iproute2's rt_protos; 186–192 are routing daemons,
	// 66 is Google's guest agent.
	Protocol = 201

	// PriorityFirst and PriorityLast bound our ip rules for what containers
	// send. Tailscale starts at 5210, Cilium sits at 9–111, amazon-vpc-cni at
	// 512–1536; inside our band there are gaps for an administrator's own rules.
	PriorityFirst = 5100
	PriorityLast  = 5199

	PriorityInside  = 5100 // from a container bridge: container bridges' subnets
	PriorityMarked  = 5110 // fwmark → that NIC's table
	PriorityViaHost = 5180 // known as unpinned: follow the host's whole policy
	PriorityLocked  = 5190 // lock 1: no mark, no way out
	PriorityEnd     = 5199 // target of the goto at PriorityViaHost

	// Rules about the host's own sockets stand behind everybody else's, just
	// ahead of main (32766): a VPN's or an administrator's rules go first.
	PriorityHostRoutes = 32700 // host sockets of a secondary NIC: the host's own specific routes
	PriorityHostSource = 32701 // host sockets of a secondary NIC: that NIC's table

	// TableInside holds the subnets of container bridges, TableInside+ID the
	// table of the managed NIC with that ID, TableNull the way that leads nowhere.
	// 52 is Tailscale's, 100–120 Antrea's and vpc-cni's, 1000+ifindex
	// OVN-Kubernetes', 10000+ ec2-net-utils', 253–255 the kernel's.
	TableInside = 8100
	TableNull   = 8199

	// NICGroup is the interface group of managed NICs: rule 32700 looks past
	// routes by them (suppress_ifgroup).
	NICGroup = 45

	// NullDevice is a bridge without ports: what is routed to it goes nowhere.
	NullDevice = "eipnull0"

	// BridgeAlias starts the ifalias of every bridge that eipnet made.
	BridgeAlias = "eipnet network "
)

// Table is the number of a routing table.
type Table uint32

// NICID names a managed NIC inside packet marks, 1 to 98: its table is
// TableInside+ID and has to stay below TableNull. Zero means none.
type NICID uint8

// MaxNICID is the largest NICID.
const MaxNICID NICID = TableNull - TableInside - 1

// Table returns the routing table of the managed NIC with this ID.
func (id NICID) Table() Table { return TableInside + Table(id) }

// Mask selects the bits of packet marks and connection marks that are ours.
// It is eight contiguous bits; all other bits are never read nor written.
type Mask uint32

// DefaultMask is the topmost byte. Kubernetes uses bits 14 and 15, Tailscale
// bits 16–23, Calico's default (0xffff0000) overlaps: there --mark-mask helps.
const DefaultMask Mask = 0xff000000

// Validate returns an error unless the mask is eight contiguous bits.
func (m Mask) Validate() error {
	if bits.OnesCount32(uint32(m)) != 8 || uint32(m)>>bits.TrailingZeros32(uint32(m)) != 0xff {
		return fmt.Errorf("mark mask %v: want eight contiguous bits, such as %v", m, DefaultMask)
	}
	return nil
}

func (m Mask) String() string { return fmt.Sprintf("0x%08x", uint32(m)) }

// Of returns the mark that stands for the NIC.
func (m Mask) Of(id NICID) Mark { return Mark(uint32(id) << bits.TrailingZeros32(uint32(m))) }

// ViaHost returns the mark of packets that follow the host's whole routing
// policy: endpoints known as unpinned, and replies to what came by no NIC of ours.
func (m Mask) ViaHost() Mark { return Mark(m) }

// Mark is a packet mark (fwmark) inside a Mask.
type Mark uint32

func (m Mark) String() string { return fmt.Sprintf("0x%08x", uint32(m)) }

// Family is an address family.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families, IPv4 first.
var Families = [...]Family{IPv4, IPv6}

func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}
