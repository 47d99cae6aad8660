package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// open makes a NIC's question: its gateway (the IPv4 one where there is one),
// and the targets, once the NIC has a mark that leads by it.
func (t *Tracker) open(n model.NIC, id model.NICID) (Question, error) {
	var all both
	mac, err := net.ParseMAC(n.MAC)
	ether := err == nil && len(mac) == 6
	switch gw4, gw6 := n.Gateway4.Addr, n.Gateway6.Addr; {
	case ether && gw4.IsValid():
		if own, ok := ownAddr(n, gw4); ok {
			all.gateway, err = openARP(n.Index, mac, own, gw4)
		}
	case ether && gw6.IsValid():
		all.gateway, err = openND(n.Name, n.Index, mac, gw6)
	default:
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if id != 0 {
		for _, target := range t.o.Targets {
			if own, ok := n.Addr(model.FamilyOf(target.Addr)); ok {
				all.targets = append(all.targets, through{target, own, n.Name, t.o.Mask.Of(id)})
			}
		}
	}
	if all.gateway == nil && len(all.targets) == 0 {
		return nil, nil
	}
	return &all, nil
}

// ownAddr is the NIC's address that asks for the gateway: the one in its subnet, else the first.
func ownAddr(n model.NIC, gateway netip.Addr) (netip.Addr, bool) {
	for _, p := range n.Addrs {
		if p.Contains(gateway) {
			return p.Addr(), true
		}
	}
	return n.Addr(model.FamilyOf(gateway))
}

// both asks the gateway, and the targets, of which one has to answer.
type both struct {
	gateway Question
	targets []through
}

func (b *both) Ask(ctx context.Context) error {
	if b.gateway != nil {
		if err := b.gateway.Ask(ctx); err != nil {
			return err
		}
	}
	if len(b.targets) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the others, once one has answered
	answers := make(chan error, len(b.targets))
	for _, target := range b.targets {
		go func() { answers <- target.ask(ctx) }()
	}
	var errs []error
	for range b.targets {
		err := <-answers
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (b *both) Close() {
	if b.gateway != nil {
		b.gateway.Close()
	}
}

// neighbour asks for a gateway on the link, with a frame of its own: the
// kernel's neighbour table is not touched.
type neighbour struct {
	file    *os.File
	gateway netip.Addr
	to      unix.Sockaddr
	request []byte
	answers func(packet []byte) bool
}

func (q *neighbour) Close() { _ = q.file.Close() }

func (q *neighbour) Ask(ctx context.Context) error {
	raw, err := q.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot ask its gateway: %w", err)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(DefaultInterval)
	}
	if err := q.file.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("cannot ask its gateway: %w", err)
	}
	var sendErr error
	buf := make([]byte, 256)
	if err := raw.Control(func(fd uintptr) {
		for { // what was said before the question answers nothing
			if _, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		sendErr = unix.Sendto(int(fd), q.request, unix.MSG_DONTWAIT, q.to)
	}); err != nil {
		return fmt.Errorf("cannot ask its gateway: %w", err)
	}
	if sendErr != nil {
		return fmt.Errorf("cannot ask its gateway %v: %w", q.gateway, sendErr)
	}
	stop := context.AfterFunc(ctx, func() { _ = q.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, err := q.file.Read(buf)
		if err != nil {
			return fmt.Errorf("gets no answer from its gateway %v", q.gateway)
		}
		if q.answers(buf[:n]) {
			return nil
		}
	}
}

// openARP asks by ARP. Whatever the gateway says by ARP meanwhile is an answer.
func openARP(index int, mac net.HardwareAddr, own, gateway netip.Addr) (*neighbour, error) {
	const ethARP = unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for ARP: %w", err)
	}
	file := os.NewFile(uintptr(fd), "arp")
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ethARP, Ifindex: index}); err != nil {
		return nil, errors.Join(fmt.Errorf("binding a socket for ARP: %w", err), file.Close())
	}
	request := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, who has
	request = append(append(request, mac...), own.AsSlice()...)
	request = append(append(request, make([]byte, 6)...), gateway.AsSlice()...)
	to := &unix.SockaddrLinklayer{Protocol: ethARP, Ifindex: index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	const sender = 14
	return &neighbour{file, gateway, to, request, func(p []byte) bool {
		return len(p) >= sender+4 && bytes.Equal(p[sender:sender+4], gateway.AsSlice())
	}}, nil
}

// openND asks by neighbour discovery.
func openND(name string, index int, mac net.HardwareAddr, gateway netip.Addr) (*neighbour, error) {
	const solicit, advert, target = 135, 136, 8
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for ND: %w", err)
	}
	file := os.NewFile(uintptr(fd), "nd")
	err = errors.Join(
		unix.BindToDevice(fd, name),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("setting up a socket for ND: %w", err), file.Close())
	}
	gw := gateway.As16()
	to := &unix.SockaddrInet6{ZoneId: uint32(index), Addr: [16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: gw[13], 14: gw[14], 15: gw[15]}}
	request := append([]byte{solicit, 0, 0, 0, 0, 0, 0, 0}, gw[:]...)
	request = append(append(request, 1, 1), mac...) // option: source link-layer address
	return &neighbour{file, gateway, to, request, func(p []byte) bool {
		return len(p) >= target+16 && p[0] == advert && bytes.Equal(p[target:target+16], gw[:])
	}}, nil
}
