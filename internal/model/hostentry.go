package model

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// HostEntry is an address of the host's own that lives on one NIC: what
// programs of the host send from it leaves by that NIC, and its published ports
// lead to it. It is on a bridge without ports.
type HostEntry struct {
	Name      string            `json:"name"`
	Bridge    string            `json:"bridge"`
	Address   netip.Addr        `json:"address"`
	Options   map[string]string `json:"options"` // eip.* entries
	Publishes []Publish         `json:"publishes,omitempty"`
	File      string            `json:"file,omitempty"`    // that declares it; empty: made by command
	Leaving   bool              `json:"leaving,omitempty"` // held until its flows are forgotten, then removed
}

var entryName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// Check returns an error unless the entry could be kept on some host. It fills
// in the name of the bridge where none is given.
func (e *HostEntry) Check() error {
	if !entryName.MatchString(e.Name) {
		return fmt.Errorf("%q is no name: want letters, digits, and _ . - in between", e.Name)
	}
	if e.Bridge == "" {
		e.Bridge = "br-" + e.Name
		if !IsLinkName(e.Bridge) {
			return fmt.Errorf("br-%s is too long for the name of a bridge: say --bridge", e.Name)
		}
	}
	if !IsLinkName(e.Bridge) {
		return fmt.Errorf("%q is no name of a bridge", e.Bridge)
	}
	if !e.Address.Is4() || !e.Address.IsGlobalUnicast() {
		return errors.New("want an IPv4 address for the host's programs to use, as 172.29.0.100")
	}
	o, err := ParsePinOptions(e.Options)
	if err != nil {
		return err
	}
	if o.Selector.IsZero() {
		return errors.New("which NIC? say its name, address, EIP or MAC")
	}
	for _, p := range e.Publishes {
		switch {
		case p.HostIP.IsValid() && !p.HostIP.Is4():
			return fmt.Errorf("%v: the address has no IPv6", p)
		case p.HostIP.IsUnspecified() && p.HostPort == p.Port:
			return fmt.Errorf("%v: a port on all addresses is on %v, too, where the program could not have it; say another one", p, e.Address)
		}
	}
	return nil
}

// ID is that of the entry's network and endpoint, and what [Rebind] knows it by.
func (e HostEntry) ID() string { return hostEntryPrefix + e.Name }

const hostEntryPrefix = "host "

// IsHostEntry reports whether the id of an endpoint or network is an entry's.
func IsHostEntry(id string) bool { return strings.HasPrefix(id, hostEntryPrefix) }

// Network is the entry's bridge, as a pass looks at it.
func (e HostEntry) Network() Network {
	return Network{
		ID: e.ID(), Name: e.Name, Local: true, Bridge: e.Bridge,
		Subnet4: netip.PrefixFrom(e.Address, e.Address.BitLen()), Gateway4: e.Address,
	}
}

// Endpoint is the entry's address, as a pass looks at it.
func (e HostEntry) Endpoint() Endpoint {
	out := Endpoint{
		ID: e.ID(), NetworkID: e.ID(), Addr4: e.Address, Phase: Joined, Options: e.Options, Publishes: e.Publishes,
		Container: Container{Known: true, ID: e.ID(), Name: e.Name},
	}
	if e.Leaving {
		out.Phase, out.Publishes = Left, nil
	}
	return out
}

// Clone returns a copy that shares nothing.
func (e HostEntry) Clone() HostEntry {
	e.Options, e.Publishes = maps.Clone(e.Options), slices.Clone(e.Publishes)
	return e
}

// Same reports whether both say the same of the address.
func (e HostEntry) Same(o HostEntry) bool {
	return e.Name == o.Name && e.Bridge == o.Bridge && e.Address == o.Address && e.File == o.File && e.Leaving == o.Leaving &&
		maps.Equal(e.Options, o.Options) && slices.Equal(e.Publishes, o.Publishes)
}

// SelectNIC returns the option that names the NIC, be it by name, address, EIP or MAC.
func SelectNIC(nic string) (map[string]string, error) {
	if nic == "" {
		return nil, errors.New("which NIC? say its name, address, EIP or MAC")
	}
	for _, key := range []string{KeyIP, KeyMAC} {
		options := map[string]string{key: nic}
		if _, err := ParsePinOptions(options); err == nil {
			return options, nil
		}
	}
	options := map[string]string{KeyNIC: nic}
	_, err := ParsePinOptions(options)
	return options, err
}

// ParsePublish reads what -p says: [ADDRESS:]HOSTPORT:PORT[/tcp|/udp].
func ParsePublish(s string) (Publish, error) {
	bad := fmt.Errorf("port %q: want [ADDRESS:]HOSTPORT:PORT, with /udp for UDP", s)
	ports, proto, _ := strings.Cut(s, "/")
	pub := Publish{Proto: TCP}
	switch proto {
	case "", "tcp":
	case "udp":
		pub.Proto = UDP
	default:
		return pub, bad
	}
	i := strings.LastIndexByte(ports, ':')
	if i < 0 {
		return pub, bad
	}
	outer, inner := ports[:i], ports[i+1:]
	if j := strings.LastIndexByte(outer, ':'); j >= 0 {
		addr, err := netip.ParseAddr(strings.Trim(outer[:j], "[]"))
		if err != nil {
			return pub, bad
		}
		pub.HostIP, outer = addr.Unmap(), outer[j+1:]
	}
	hostPort, err1 := strconv.ParseUint(outer, 10, 16)
	port, err2 := strconv.ParseUint(inner, 10, 16)
	if err1 != nil || err2 != nil || hostPort == 0 || port == 0 {
		return pub, bad
	}
	pub.HostPort, pub.Port = uint16(hostPort), uint16(port)
	return pub, nil
}

// ParsePublishes reads a list of those.
func ParsePublishes(list []string) ([]Publish, error) {
	var out []Publish
	for _, s := range list {
		p, err := ParsePublish(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
