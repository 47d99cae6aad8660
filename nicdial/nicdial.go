//go:build linux

// Package nicdial binds a Go program's connections to one NIC of a host that
// has several: what is dialed leaves by that NIC with that NIC's address, name
// look-ups too, and what listens there answers there.
//
//	eth1, err := nicdial.New("eth1") // or an address or a MAC: "172.31.0.14", "02:42:ac:1f:00:0e"
//	client := &http.Client{Transport: eth1.Transport()}
//	resp, err := client.Get("https://example.com/")
//
// Every socket gets the NIC's address as its source and is bound to its device
// (SO_BINDTODEVICE), so a packet leaves by that NIC with that address or not at
// all. That needs no privilege from Linux 5.7 on. The NIC and its addresses are
// looked up at every call: a NIC that comes later or gets another address is
// followed by the next connection.
//
// # Routing
//
// Binding does not make a route. Hosts with several NICs mostly have a default
// route by the first of them only; bound to another, Linux then takes every
// destination for a neighbour and asks for it by ARP, which ends in "no route to
// host" after some seconds, and a socket with only its source set leaves by the
// first NIC with the second one's address, which clouds drop. So before it
// connects this package asks the kernel whether there is a route from that
// address by that NIC, and returns a [*RouteError] at once if there is none; its
// text says what to do. [NIC.Check] asks without connecting.
//
// Where eipnet runs and manages the NIC (a container is pinned to it, or
// `eipnet serve --nics eth1`), the routes are there. Without eipnet,
//
//	ip route add default via 172.31.0.1 dev eth1 table 100
//	ip rule add from 172.31.0.14 lookup 100
//
// does for one address what eipnet keeps for all. This package changes nothing
// on the host and imports nothing of eipnet.
package nicdial

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
)

// Errors to be told apart with errors.Is.
var (
	ErrNoNIC      = errors.New("no such NIC on this host")
	ErrNoAddress  = errors.New("the NIC has no usable address")
	ErrNoRoute    = errors.New("no route by this NIC")
	ErrPermission = errors.New("not allowed to bind a socket to a NIC: this needs Linux 5.7 or CAP_NET_RAW")
)

// NIC is one of the host's NICs, which need not be there yet. Its methods may be
// called from several goroutines.
type NIC struct {
	name string           // by name,
	mac  net.HardwareAddr // by MAC,
	addr netip.Addr       // or by one of its addresses, which is then the source

	servers []netip.AddrPort // given name servers
	turn    atomic.Uint32    // of the name server that is asked next
}

// Option changes how a NIC is used.
type Option func(*NIC)

// WithNameServers makes the [NIC.Resolver] ask these, not those of /etc/resolv.conf.
func WithNameServers(servers ...netip.AddrPort) Option {
	return func(n *NIC) { n.servers = servers }
}

// New returns the NIC that is named by its name ("eth1"), by one of its
// addresses ("172.31.0.14", which then is the source address of that family) or
// by its MAC address ("02:42:ac:1f:00:0e"). That there is no such NIC is an
// error of its use, not of New: it may come later.
func New(nic string, options ...Option) (*NIC, error) {
	n := &NIC{}
	if addr, err := netip.ParseAddr(nic); err == nil {
		if addr = addr.Unmap(); addr.Zone() != "" || !addr.IsGlobalUnicast() {
			return nil, fmt.Errorf("nicdial: %s is no address that a NIC's packets can leave with", nic)
		}
		n.addr = addr
	} else if mac, err := net.ParseMAC(nic); err == nil && len(mac) == 6 {
		n.mac = mac
	} else {
		if nic == "" || len(nic) > 15 || strings.ContainsAny(nic, "/ \t:") {
			return nil, fmt.Errorf("nicdial: %q is no NIC's name, address or MAC address", nic)
		}
		n.name = nic
	}
	for _, o := range options {
		o(n)
	}
	return n, nil
}

// String returns what the NIC was named by.
func (n *NIC) String() string {
	switch {
	case n.addr.IsValid():
		return n.addr.String()
	case n.mac != nil:
		return n.mac.String()
	}
	return n.name
}

// device is a NIC as it is at this moment.
type device struct {
	name   string
	index  int
	v4, v6 netip.Addr // source addresses; zero: none
}

// source returns the address that packets to dst leave with.
func (d device) source(dst netip.Addr) netip.Addr {
	if dst.Is4() {
		return d.v4
	}
	return d.v6
}

// find looks the NIC up.
func (n *NIC) find() (device, error) {
	s, err := openRoute()
	if err != nil {
		return device{}, err
	}
	defer s.close()
	links, err := s.links(n.name)
	if err != nil {
		return device{}, err
	}
	addrs, err := s.addrs()
	if err != nil {
		return device{}, err
	}
	bare := "" // that of several links with this MAC which has no address: a bridge port's, say
	for _, l := range links {
		d := device{name: l.name, index: l.index}
		found := n.name == l.name || n.mac != nil && n.mac.String() == l.mac.String()
		for _, a := range addrs {
			if a.index != l.index {
				continue
			}
			if a.addr == n.addr {
				found = true
			}
			switch {
			case a.addr.Is4() && (!d.v4.IsValid() || a.addr == n.addr):
				d.v4 = a.addr
			case a.addr.Is6() && (!d.v6.IsValid() || a.addr == n.addr):
				d.v6 = a.addr
			}
		}
		if !found {
			continue
		}
		if !d.v4.IsValid() && !d.v6.IsValid() {
			bare = d.name
			continue
		}
		return d, nil
	}
	if bare != "" {
		return device{}, fmt.Errorf("nicdial: %s: %w", bare, ErrNoAddress)
	}
	return device{}, fmt.Errorf("nicdial: %v: %w", n, ErrNoNIC)
}
