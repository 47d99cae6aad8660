package model

import "fmt"

// Severity says how much a Problem matters.
type Severity string

// The severities, mildest first.
const (
	Warning Severity = "warning" // works, but not as somebody may expect
	Failure Severity = "error"   // something asked for does not work
)

// Code identifies a kind of Problem; docs/problems.md lists all of them.
type Code string

// All problem codes.
const (
	CodeNICMissing     Code = "nic-missing"      // a pin names a NIC that is not there
	CodeNICDown        Code = "nic-down"         // a pinned NIC is down or has no carrier
	CodeNICInVRF       Code = "nic-in-vrf"       // a pinned NIC is in a VRF
	CodeNICNoAnswer    Code = "nic-no-answer"    // nothing answers by a NIC that a pin with a fallback needs
	CodeFailedOver     Code = "failed-over"      // a pin took its fallback
	CodeNoFallback     Code = "fallback-missing" // eip.fallback names a NIC that is not there
	CodeNICNoAddress   Code = "nic-no-address"   // a pinned NIC has no address of a family
	CodeNoGateway      Code = "nic-no-gateway"   // no next hop is known for a managed NIC
	CodeTooManyNICs    Code = "too-many-nics"    // more managed NICs than marks
	CodeBadSelector    Code = "bad-selector"     // options or labels that say nothing usable
	CodeEIPUnknown     Code = "eip-unknown"      // eip.public names an EIP that nobody mapped
	CodeImageLabel     Code = "image-label"      // eip.* labels of an image, ignored
	CodeNoEndpoint     Code = "no-endpoint"      // labels on a container without a network of its own
	CodeBesidePin      Code = "beside-pin"       // a pinned container is on a network out of reach
	CodeNetworkLabel   Code = "network-label"    // eip.* labels of a network of ours, without effect
	CodeNetworkUnknown Code = "network-unknown"  // Docker has a network of ours that the state lacks
	CodePending        Code = "pending"          // labels not known yet
	CodePortTaken      Code = "port-taken"       // a published port could not be reserved
	CodeAddressClash   Code = "address-clash"    // a host entry's address is somebody else's, too
	CodeBadFile        Code = "bad-file"         // a file of host entries says nothing usable
	CodeDockerAway     Code = "docker-away"      // Docker's API does not answer
	CodeElsewhere      Code = "docker-elsewhere" // Docker's networks are not on this host
	CodeKernelOld      Code = "kernel-old"       // the kernel may lack what the tables need
	CodeFirewalld      Code = "firewalld"        // firewalld could not be told of our bridges
	CodeContested      Code = "contested"        // somebody keeps undoing what we write
	CodeApply          Code = "apply-failed"     // the kernel refused something
	CodeStateDamaged   Code = "state-damaged"    // the state file was set aside
	CodeStateReadOnly  Code = "state-read-only"  // the state file cannot be written
	CodeSettingUnused  Code = "setting-unused"   // a flag that matches nothing, or a variable that is none
)

// Problem is one thing that is not as it should be, with the way to mend it.
// The same value is what log, status and documentation show.
type Problem struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"`       // what it is about: a container, NIC or network
	Text     string   `json:"text"`          // what is wrong
	Fix      string   `json:"fix,omitempty"` // what to do about it
}

func (p Problem) String() string {
	s := fmt.Sprintf("%s: %s", p.Subject, p.Text)
	if p.Fix != "" {
		s += " (" + p.Fix + ")"
	}
	return s
}
