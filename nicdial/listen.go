//go:build linux

package nicdial

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// ListenConfig returns a configuration whose sockets hear only what comes in by
// the NIC, and answer by it. As with every socket that is bound to a device,
// callers on this host itself are not heard. Multipath TCP is off: its further
// paths would leave by other NICs.
//
// On a wildcard address TCP follows the NIC to another address. A UDP socket has to be given an address of the NIC: on a wildcard address the
// kernel chooses source and route of answers without looking at the NIC's own
// routes. [NIC.ListenPacket] fills the address in.
func (n *NIC) ListenConfig() *net.ListenConfig {
	lc := &net.ListenConfig{Control: n.controlListen}
	lc.SetMultipathTCP(false)
	return lc
}

// Listen listens for TCP on the NIC. Where the address has no host (":8080"),
// it hears whatever comes in by the NIC, also when that gets another address
// later, and [net.Listener.Addr] is a wildcard. If the NIC was named by one of
// its addresses it is that one; and its address of the other family with "tcp6"
// or "tcp4".
func (n *NIC) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	own, err := n.here(network, address)
	if err != nil {
		return nil, err
	}
	if n.addr.IsValid() {
		address = own
	}
	return n.ListenConfig().Listen(ctx, network, address)
}

// ListenPacket listens for UDP on the NIC. What is sent by it leaves by the NIC.
// Where the address has no host, it is the NIC's own of this moment: its IPv4
// address if it has one and the network is not "udp6". When the NIC gets another
// address, nothing comes in by the socket any more: listen anew.
func (n *NIC) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	address, err := n.here(network, address)
	if err != nil {
		return nil, err
	}
	return n.ListenConfig().ListenPacket(ctx, network, address)
}

// here puts the NIC's address where the address has no host.
func (n *NIC) here(network, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("nicdial: reading the address: %w", err)
	}
	if host != "" {
		return address, nil
	}
	d, err := n.find()
	if err != nil {
		return "", err
	}
	a := d.v4
	if strings.HasSuffix(network, "6") || !a.IsValid() && !strings.HasSuffix(network, "4") {
		a = d.v6
	}
	if !a.IsValid() {
		return "", fmt.Errorf("nicdial: listening on %s with %s: %w of that family", d.name, network, ErrNoAddress)
	}
	return net.JoinHostPort(a.String(), port), nil
}

// controlListen binds a socket that is about to listen. That there is no route
// yet is no error: it may come later, and until then nothing leaves.
func (n *NIC) controlListen(network, address string, c syscall.RawConn) error {
	at, err := target(network, address)
	if err != nil {
		return err
	}
	d, err := n.find()
	if err != nil {
		return err
	}
	if at.Addr().IsUnspecified() && strings.HasPrefix(network, "udp") {
		return fmt.Errorf("nicdial: listening on %s with %s: name one of its addresses, or use ListenPacket", d.name, address)
	}
	if d, err = bearing(d, at.Addr()); err != nil {
		return err
	}
	b := binding{device: d.name}
	for _, dst := range heard(network, at.Addr()) {
		if p, err := d.plan(dst); err == nil && p.mark != 0 {
			b.mark = p.mark
			break
		}
	}
	return onSocket(c, b.apply)
}

// heard returns the destinations that stand for whoever a listener answers to.
// The wildcard of IPv6 hears both families, and a NIC has one mark for both.
func heard(network string, at netip.Addr) []netip.Addr {
	if at.IsUnspecified() && !strings.HasSuffix(network, "4") {
		return world
	}
	return slices.DeleteFunc(slices.Clone(world), func(dst netip.Addr) bool { return dst.Is4() != (at.Is4() || at.IsUnspecified()) })
}

// bearing checks that the address is the device's, and returns the device with
// it as its source.
func bearing(d device, a netip.Addr) (device, error) {
	if a.IsUnspecified() {
		return d, nil
	}
	with := &NIC{addr: a}
	other, err := with.find()
	if err != nil {
		return device{}, err
	}
	if other.index != d.index {
		return device{}, fmt.Errorf("nicdial: listening on %v: that is an address of %s and not of %s", a, other.name, d.name)
	}
	return other, nil
}
