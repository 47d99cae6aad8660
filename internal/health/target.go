package health

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// Target is somebody out there who should be reached through a NIC: by a TCP
// connection, or, without a port, by ICMP echo.
type Target struct {
	Addr netip.Addr
	Port uint16
}

// ParseTarget reads 192.0.2.1, 192.0.2.1:443, 2001:db8::1 or [2001:db8::1]:443.
func ParseTarget(s string) (Target, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return Target{Addr: a.Unmap()}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
		return Target{}, fmt.Errorf("%q: want ADDRESS or ADDRESS:PORT, as 192.0.2.1:443", s)
	}
	return Target{ap.Addr().Unmap(), ap.Port()}, nil
}

func (t Target) String() string {
	if t.Port == 0 {
		return t.Addr.String()
	}
	return netip.AddrPortFrom(t.Addr, t.Port).String()
}

// through is a target asked through one NIC: by its device, with its address, on its table.
type through struct {
	Target
	own  netip.Addr
	nic  string
	mark model.Mark
}

func (t through) control(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(t.mark)); err == nil {
			err = unix.BindToDevice(int(fd), t.nic)
		}
	}); e != nil {
		return e
	}
	return err
}

func (t through) ask(ctx context.Context) error {
	try := t.echo
	if t.Port != 0 {
		try = t.connect
	}
	if err := try(ctx); err != nil {
		return fmt.Errorf("does not reach %v: %w", t.Target, err)
	}
	return nil
}

func (t through) connect(ctx context.Context) error {
	d := net.Dialer{Control: t.control, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.own, 0))}
	c, err := d.DialContext(ctx, "tcp", t.Target.String())
	if err != nil {
		return err
	}
	return c.Close()
}

var sequence atomic.Uint32

// echo sends an ICMP echo request and waits for its answer.
func (t through) echo(ctx context.Context) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if t.Addr.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	lc := net.ListenConfig{Control: t.control}
	c, err := lc.ListenPacket(ctx, network, t.own.String())
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	msg := make([]byte, 8)
	msg[0] = request
	binary.BigEndian.PutUint16(msg[4:], uint16(os.Getpid()))
	binary.BigEndian.PutUint16(msg[6:], uint16(sequence.Add(1)))
	if t.Addr.Is4() { // the kernel fills in the checksum of ICMPv6
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: t.Addr.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 256)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if ip, ok := from.(*net.IPAddr); !ok || !ip.IP.Equal(t.Addr.AsSlice()) {
			continue
		}
		if n >= 8 && buf[0] == reply && string(buf[4:8]) == string(msg[4:8]) {
			return nil
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}
