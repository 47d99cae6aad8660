package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Errors of [Host.Resolve], to be told apart with errors.Is.
var (
	ErrNoNIC      = errors.New("no such NIC on this host")
	ErrNoAddress  = errors.New("no NIC of this host has this address")
	ErrUnknownEIP = errors.New("nobody told which private address this EIP belongs to")
)

// Resolve finds the NIC that a selector names and, for selectors by address,
// which of its addresses (zero: its first). eips maps public to private
// addresses; an EIP is taken where an address is asked for, too. NIC names are
// compared exactly first and then without case, as Docker's CLI lower-cases
// endpoint options.
func (h Host) Resolve(s Selector, eips map[netip.Addr]netip.Addr) (NIC, netip.Addr, error) {
	addr := s.Addr
	cause := ErrNoNIC
	switch s.Kind {
	case ByNIC:
		if n, ok := h.NIC(s.Name); ok {
			return n, netip.Addr{}, nil
		}
		for _, n := range h.NICs {
			if strings.EqualFold(n.Name, s.Name) {
				return n, netip.Addr{}, nil
			}
		}
	case ByMAC:
		for _, n := range h.NICs {
			if n.MAC == s.Name {
				return n, netip.Addr{}, nil
			}
		}
	case ByPublic:
		private, ok := eips[s.Addr]
		if !ok {
			return NIC{}, netip.Addr{}, fmt.Errorf("%v: %w; name it with --eip %v=PRIVATE-ADDRESS", s, ErrUnknownEIP, s.Addr)
		}
		addr = private
		fallthrough
	case ByIP:
		cause = ErrNoAddress
		if n, ok := h.NICWith(addr); ok {
			return n, addr, nil
		}
		if private, ok := eips[addr]; ok && s.Kind == ByIP {
			if n, ok := h.NICWith(private); ok {
				return n, private, nil
			}
		}
	}
	return NIC{}, netip.Addr{}, fmt.Errorf("%v: %w; NICs of this host: %s", s, cause, h.NICList())
}

// NICWith finds the NIC that has the address.
func (h Host) NICWith(a netip.Addr) (NIC, bool) {
	i := slices.IndexFunc(h.NICs, func(n NIC) bool { return n.Has(a) })
	if i < 0 {
		return NIC{}, false
	}
	return h.NICs[i], true
}

// NICList renders the host's NICs with their addresses, as errors show them.
func (h Host) NICList() string {
	if len(h.NICs) == 0 {
		return "none"
	}
	var parts []string
	for _, n := range h.NICs {
		var in []string
		for _, p := range n.Addrs {
			in = append(in, p.Addr().String())
		}
		if n.Primary {
			in = append(in, "primary")
		}
		parts = append(parts, n.Name+" ("+strings.Join(in, ", ")+")")
	}
	return strings.Join(parts, ", ")
}
