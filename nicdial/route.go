//go:build linux

package nicdial

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// RouteError says that the kernel has no route to a destination from a NIC's
// address by that NIC. It is an [ErrNoRoute].
type RouteError struct {
	NIC    string
	Source netip.Addr
	Dst    netip.Addr // the zero Addr: the world
}

func (e *RouteError) Error() string {
	dst := "the world"
	if e.Dst.IsValid() {
		dst = e.Dst.String()
	}
	ip := "ip"
	if e.Source.Is6() {
		ip = "ip -6"
	}
	return fmt.Sprintf("nicdial: no route to %s from %v by %s: run eipnet with --nics %s; or, with GATEWAY the NIC's router and a table of your own, "+
		"%s route add default via GATEWAY dev %s table 100 && %s rule add from %v lookup 100", dst, e.Source, e.NIC, e.NIC, ip, e.NIC, ip, e.Source)
}

// Is makes a RouteError an [ErrNoRoute].
func (e *RouteError) Is(target error) bool { return target == ErrNoRoute }

// Destinations that stand for the world: documentation prefixes, to which
// nobody has a route of their own.
var world = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ffff::1")}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Check reports whether the world can be reached by the NIC: that it is there,
// has an address, that its packets find a route for each family of which it has
// an address, and that this process may bind to it. It asks the kernel and sends
// nothing. The errors, joined, say what is missing and what to do: a
// [*RouteError] is the routing that somebody has to set up, where eipnet does
// not run or does not manage this NIC.
func (n *NIC) Check() error {
	d, err := n.find()
	if err != nil {
		return err
	}
	var errs []error
	for _, dst := range world {
		src := d.source(dst)
		if !src.IsValid() {
			continue
		}
		p, err := d.plan(dst)
		if _, missing := errors.AsType[*RouteError](err); missing {
			err = &RouteError{NIC: d.name, Source: src}
		}
		if err == nil {
			err = p.try()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// local reports whether the address is this host itself.
func local(a netip.Addr) (bool, error) {
	a = a.Unmap()
	if a.IsLoopback() || a.IsUnspecified() {
		return true, nil
	}
	s, err := openRoute()
	if err != nil {
		return false, err
	}
	defer s.close()
	kind, err := s.way(netip.Addr{}, a.WithZone(""), 0, 0)
	return kind == unix.RTN_LOCAL, err
}

// binding is how one socket is bound.
type binding struct {
	device string // empty: to none
	source netip.Addr
	mark   uint32 // eipnet's, where only that leads to the NIC's routes
}

// plan says how a socket to dst has to be bound, or why it cannot be.
func (d device) plan(dst netip.Addr) (binding, error) {
	s, err := openRoute()
	if err != nil {
		return binding{}, err
	}
	defer s.close()
	switch kind, err := s.way(netip.Addr{}, dst, 0, 0); {
	case kind == unix.RTN_LOCAL || err != nil:
		return binding{}, err // the host itself: no NIC has to do with it
	case kind == unix.RTN_BROADCAST || dst.IsMulticast() || dst == broadcast:
		return binding{}, fmt.Errorf("nicdial: reaching %v by %s: multicast and broadcast are not for this package", dst, d.name)
	}
	b := binding{device: d.name, source: d.source(dst)}
	if !b.source.IsValid() {
		return binding{}, fmt.Errorf("nicdial: reaching %v by %s: %w of that family", dst, d.name, ErrNoAddress)
	}
	kind, err := s.way(b.source, dst, d.index, 0)
	if kind == unix.RTN_UNICAST || err != nil {
		return b, err
	}
	marks, err := s.marks(dst)
	if err != nil {
		return binding{}, err
	}
	for _, m := range marks {
		kind, err := s.way(b.source, dst, d.index, m)
		if kind == unix.RTN_UNICAST || err != nil {
			b.mark = m
			return b, err
		}
	}
	return binding{}, &RouteError{NIC: d.name, Source: b.source, Dst: dst}
}
