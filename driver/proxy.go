package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
)

// What one published port may have open at a time. What comes beyond that waits
// (TCP), or takes the place of the flow that was silent for the longest (UDP).
const (
	proxyConns = 1024
	proxyFlows = 256
)

// What all ports together may have open, and how many files one connection takes
// at most: two sockets, and two pipes to splice. Half of the files that the process may
// open, at least, is for the rest of the daemon. A flow has a buffer of 64 KiB.
const (
	allConns    = 4096
	allFlows    = 1024
	filesOfEach = 6
)

// proxyDial is how long the container has to accept a connection.
const proxyDial = 10 * time.Second

// acceptPause is how long nothing is accepted after that failed: the process
// has too many files open.
const acceptPause = 100 * time.Millisecond

// shared is what the proxies of all ports have together.
type shared struct {
	log   *slog.Logger
	conns slots
	flows slots
	udp   atomic.Pointer[map[uint16]bool] // ports of UDP
}

func newShared(log *slog.Logger) *shared {
	n := allConns
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		n = int(min(uint64(n), files.Cur/2/filesOfEach))
	}
	s := &shared{log: cmp.Or(log, slog.New(slog.DiscardHandler)), conns: make(slots, n), flows: make(slots, min(n, allFlows))}
	s.udp.Store(new(map[uint16]bool))
	return s
}

type slots chan struct{}

// take reports whether one more may be open.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) give() { <-s }

// proxy takes what comes to a published port to its container, by connections of
// its own, as docker-proxy does: the container sees the bridge's address.
type proxy struct {
	*shared
	reserved *os.File
	proto    model.Proto
	to       netip.AddrPort
	cancel   context.CancelFunc
	socket   io.Closer
	wg       sync.WaitGroup
}

// startProxy serves a reserved socket. That stays reserved when the proxy ends.
func startProxy(reserved *os.File, proto model.Proto, to Proxied, s *shared) (*proxy, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &proxy{shared: s, reserved: reserved, proto: proto, to: to.To, cancel: cancel}
	err := control(reserved, func(fd int) error { return prepare(fd, proto) })
	if err == nil {
		err = p.serve(ctx)
	}
	if err == nil {
		filter := keepAll
		if to.Loopback {
			filter = loopbackOnly
		}
		err = control(reserved, func(fd int) error { return attach(fd, filter) })
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// prepare has nothing answered from an address that is gone.
func prepare(fd int, proto model.Proto) error {
	if proto != model.UDP {
		return nil
	}
	return os.NewSyscallError("setsockopt IPV6_FREEBIND", unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 0))
}

func (p *proxy) serve(ctx context.Context) error {
	switch p.proto {
	case model.TCP:
		l, err := net.FileListener(p.reserved)
		if err != nil {
			return err
		}
		p.socket = l
		p.wg.Go(func() { p.accept(ctx, l) })
		return nil
	case model.UDP:
		c, err := net.FilePacketConn(p.reserved)
		if err != nil {
			return err
		}
		p.socket = c
		at := ipv6.NewPacketConn(c)
		// The answer to what came to one of several addresses has to leave with it.
		if err := at.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
			return err
		}
		f := &flows{proxy: p, at: at, by: make(map[flowKey]*flow)}
		p.wg.Go(func() { f.receive(ctx) })
		return nil
	}
	return fmt.Errorf("%v has no proxy", p.proto)
}

// close ends it with all its connections, and with what waits to be one, which is
// not for who has the port next. On nil it does nothing.
func (p *proxy) close() error {
	if p == nil {
		return nil
	}
	err := control(p.reserved, func(fd int) error { return attach(fd, dropAll) })
	p.cancel()
	if p.socket != nil {
		_ = p.socket.Close()
	}
	p.wg.Wait()
	return errors.Join(err, control(p.reserved, func(fd int) error { return drain(fd, p.proto) }))
}

// drain throws away what waits at a socket.
func drain(fd int, proto model.Proto) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	var buf [1]byte
	for {
		var err error
		if proto == model.TCP {
			var conn int
			if conn, _, err = unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
				_ = unix.SetsockoptLinger(conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
				_ = unix.Close(conn)
			}
		} else {
			_, _, err = unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		}
		switch {
		case err == nil, errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case errors.Is(err, unix.EAGAIN):
			return nil
		default:
			return os.NewSyscallError("emptying a socket", err)
		}
	}
}

func (p *proxy) accept(ctx context.Context, l net.Listener) {
	room := make(chan struct{}, proxyConns)
	failed := false // already said
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := l.Accept()
		if err != nil {
			if <-room; !failed && ctx.Err() == nil {
				p.log.Warn("a published port does not accept", slog.String("port", l.Addr().String()), slog.Any("err", err))
				failed = true
			}
			if !delay.For(ctx, acceptPause) {
				return
			}
			continue
		}
		failed = false
		p.wg.Go(func() {
			defer func() { <-room }()
			p.connect(ctx, conn.(*net.TCPConn))
		})
	}
}

// connect passes on what both sides say, until both are done or one fails. The
// one that is left is reset.
func (p *proxy) connect(ctx context.Context, in *net.TCPConn) {
	defer in.Close()
	if !p.conns.take() {
		_ = in.SetLinger(0)
		return
	}
	defer p.conns.give()
	dialer := net.Dialer{Timeout: proxyDial}
	conn, err := dialer.DialContext(ctx, "tcp", p.to.String())
	if err != nil {
		_ = in.SetLinger(0)
		return
	}
	out := conn.(*net.TCPConn)
	defer out.Close()
	reset := func() {
		for _, c := range []*net.TCPConn{in, out} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
	defer context.AfterFunc(ctx, reset)()
	var both sync.WaitGroup
	pass := func(dst, src *net.TCPConn) {
		if _, err := io.Copy(dst, src); err != nil || dst.CloseWrite() != nil {
			reset()
		}
	}
	both.Go(func() { pass(out, in) })
	both.Go(func() { pass(in, out) })
	both.Wait()
}
