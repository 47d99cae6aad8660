//go:build linux

package nicdial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Dialer returns a dialer whose connections live on the NIC. It is the
// standard library's, with the NIC's addresses as sources, names looked up by
// the NIC, and Happy Eyeballs among its families. Its fields may be changed, but
// for ControlContext and Resolver.
//
// What is sent and not acknowledged for half a minute ends a TCP connection
// (TCP_USER_TIMEOUT): where the NIC has lost the address that it began with,
// nothing else would for a quarter of an hour. Multipath TCP is off: its
// further paths would leave by other NICs.
func (n *NIC) Dialer() *net.Dialer {
	d := &net.Dialer{
		Timeout: 30 * time.Second, KeepAlive: 30 * time.Second,
		Resolver: n.Resolver(), ControlContext: n.controlDial,
	}
	d.SetMultipathTCP(false)
	return d
}

// userTimeout is how long TCP waits for an acknowledgement.
const userTimeout = 30 * time.Second

// DialContext connects to the address by the NIC, as [net.Dialer.DialContext]
// does. A destination that is this host itself is reached as ever, as no NIC
// has to do with it.
func (n *NIC) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	network, err := n.families(network, address)
	if err != nil {
		return nil, err
	}
	return n.Dialer().DialContext(ctx, network, address)
}

// families narrows tcp and udp to the family that the NIC has, if it has one
// only: a name's other addresses are not even looked up.
func (n *NIC) families(network, address string) (string, error) {
	if network != "tcp" && network != "udp" {
		return network, nil
	}
	d, err := n.find()
	if err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("nicdial: reading the address: %w", err)
	}
	_, notLiteral := netip.ParseAddr(host)
	switch {
	case notLiteral == nil, host == "localhost":
	case !d.v6.IsValid():
		network += "4"
	case !d.v4.IsValid():
		network += "6"
	}
	return network, nil
}

// Transport returns a new transport whose connections live on the NIC. It has
// the limits and time-outs that [http.DefaultTransport] has in the standard
// library, whatever a program has made of that variable, and connects with
// [NIC.DialContext]. It has no proxy, be it in the environment or not: behind
// one, the world would see the proxy's address. A connection over which nothing
// comes any more, as the NIC has another address, is given up after half a
// minute to a minute, HTTP/2's by pings; CloseIdleConnections does it at once.
func (n *NIC) Transport() *http.Transport {
	t := &http.Transport{
		ForceAttemptHTTP2: true, MaxIdleConns: 100, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: time.Second,
		HTTP2: &http.HTTP2Config{SendPingTimeout: userTimeout / 2, PingTimeout: userTimeout / 2},
	}
	t.DialContext = n.DialContext
	return t
}

// controlDial binds a socket that is about to be connected. The dialer binds
// none, as it takes one local address, and the NIC has one for each family.
func (n *NIC) controlDial(_ context.Context, network, address string, c syscall.RawConn) error {
	dst, err := target(network, address)
	if err != nil {
		return err
	}
	d, err := n.find()
	if err != nil {
		return err
	}
	b, err := d.plan(dst.Addr())
	if err != nil {
		return err
	}
	return onSocket(c, func(fd int) error {
		if err := b.apply(fd); err != nil || !b.source.IsValid() {
			return err
		}
		if strings.HasPrefix(network, "tcp") {
			// connect chooses the port then, which two connections to different
			// destinations may share.
			err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
			if err == nil {
				err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
			}
			if err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(b.source)))
	})
}

// target reads what the standard library's Control is told.
func target(network, address string) (netip.AddrPort, error) {
	switch strings.TrimRight(network, "46") {
	case "tcp", "udp":
	default:
		return netip.AddrPort{}, fmt.Errorf("nicdial: network %s: want tcp or udp", network)
	}
	if strings.HasPrefix(address, ":") { // a wildcard to listen on
		address = "[::]" + address
	}
	dst, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("nicdial: reading the address: %w", err)
	}
	return netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// onSocket calls fn with the socket's descriptor.
func onSocket(c syscall.RawConn, fn func(fd int) error) error {
	var inner error
	err := c.Control(func(fd uintptr) { inner = fn(int(fd)) })
	return errors.Join(err, inner)
}

// apply binds the socket to device and mark.
func (b binding) apply(fd int) error {
	if b.device == "" {
		return nil
	}
	if b.mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(b.mark)); err != nil {
			return fmt.Errorf("nicdial: marking the socket, without which there is no route by %s (%w): %w", b.device, ErrNoRoute, err)
		}
	}
	err := unix.BindToDevice(fd, b.device)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nicdial: %s: %w", b.device, ErrPermission)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("nicdial: %s: %w", b.device, ErrNoNIC)
	}
	return os.NewSyscallError("setsockopt", err)
}

// try applies the binding to a socket that is thrown away.
func (b binding) try() error {
	fd, err := unix.Socket(int(family(b.source)), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return b.apply(fd)
}
