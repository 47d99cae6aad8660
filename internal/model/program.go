package model

import "net/netip"

// Program is a program of the host that is to live on a NIC, in a network
// namespace of its own: what `eipnet exec` asks for.
type Program struct {
	Name string `json:"name"`
	// As is the name of a [HostEntry] whose NIC and ports the program has, in
	// place of Options and Publishes.
	As        string            `json:"as,omitempty"`
	Options   map[string]string `json:"options"` // eip.* entries
	Publishes []Publish         `json:"publishes,omitempty"`
}

// Attachment is what a program's namespace is to be set up with: Link, a device
// in the host's namespace that is to be moved there, with Addr, and Gateway as
// its default route.
type Attachment struct {
	ID      string       `json:"id"` // of the endpoint
	Link    string       `json:"link"`
	Addr    netip.Prefix `json:"addr"`
	Gateway netip.Addr   `json:"gateway"`
}

// The network of all programs.
const (
	ProgramsID     = "programs"
	ProgramsBridge = "eip-programs"
)
