package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// What one published port may have open at a time. What comes beyond that waits
// (TCP), or takes the place of the flow that was silent for the longest (UDP).
const (
	proxyConns = 1024
	proxyFlows = 256
)

// proxyDial is how long the container has to accept a connection, flowIdle how
// long a UDP flow may be silent; the latter is docker-proxy's.
const (
	proxyDial = 10 * time.Second
	flowIdle  = 90 * time.Second
)

// acceptPause is how long nothing is accepted after that failed: the process
// has too many files open.
const acceptPause = 100 * time.Millisecond

// maxDatagram is the longest UDP payload.
const maxDatagram = 65535

// proxy takes what comes to a published port to its container, by connections of
// its own, as docker-proxy does: the container sees the bridge's address.
type proxy struct {
	cancel context.CancelFunc
	socket io.Closer
	wg     sync.WaitGroup
}

// startProxy serves a reserved socket, if there is anything to do. The socket
// stays reserved when the proxy ends.
func startProxy(socket *os.File, proto model.Proto, to Proxied) (*proxy, error) {
	if !to.To.IsValid() {
		return nil, filtered(socket, to)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &proxy{cancel: cancel}
	err := p.serve(ctx, socket, proto, to.To)
	if err == nil {
		err = filtered(socket, to)
	}
	if err != nil {
		p.close()
		return nil, errors.Join(err, filtered(socket, Proxied{}))
	}
	return p, nil
}

func (p *proxy) serve(ctx context.Context, socket *os.File, proto model.Proto, to netip.AddrPort) error {
	switch proto {
	case model.TCP:
		l, err := net.FileListener(socket)
		if err != nil {
			return err
		}
		p.socket = l
		p.wg.Go(func() { p.accept(ctx, l, to) })
		return nil
	case model.UDP:
		c, err := net.FilePacketConn(socket)
		if err != nil {
			return err
		}
		p.socket = c
		at := ipv6.NewPacketConn(c)
		// The answer to what came to one of several addresses has to leave with it.
		if err := at.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
			return err
		}
		flows := &flows{at: at, to: to, by: make(map[flowKey]*flow)}
		p.wg.Go(func() { p.receive(ctx, flows) })
		return nil
	}
	return fmt.Errorf("%v has no proxy", proto)
}

// close ends it with all its connections, and waits for that. On nil it does nothing.
func (p *proxy) close() {
	if p == nil {
		return
	}
	p.cancel()
	if p.socket != nil {
		_ = p.socket.Close()
	}
	p.wg.Wait()
}

// pause waits; false: it is over.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *proxy) accept(ctx context.Context, l net.Listener, to netip.AddrPort) {
	slots := make(chan struct{}, proxyConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := l.Accept()
		if err != nil {
			if <-slots; !pause(ctx, acceptPause) {
				return
			}
			continue
		}
		p.wg.Go(func() {
			defer func() { <-slots }()
			connect(ctx, conn.(*net.TCPConn), to)
		})
	}
}

// connect passes on what both sides say, until both are done or one fails. The
// one that is left is reset.
func connect(ctx context.Context, in *net.TCPConn, to netip.AddrPort) {
	defer in.Close()
	dialer := net.Dialer{Timeout: proxyDial}
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
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

// flowKey is who sends datagrams, and to which of the host's addresses.
type flowKey struct {
	from netip.AddrPort
	at   netip.Addr
}

type flow struct {
	conn *net.UDPConn // to the container
	last time.Time    // when either side said something
}

// flows are the UDP conversations of one port.
type flows struct {
	at *ipv6.PacketConn
	to netip.AddrPort

	mu sync.Mutex
	by map[flowKey]*flow
}

func (p *proxy) receive(ctx context.Context, f *flows) {
	defer f.closeAll()
	own := f.at.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	buf := make([]byte, maxDatagram)
	for {
		n, cm, addr, err := f.at.ReadFrom(buf)
		if err != nil || cm == nil {
			if err != nil && !pause(ctx, acceptPause) {
				return
			}
			continue
		}
		from := addr.(*net.UDPAddr).AddrPort()
		at, ok := netip.AddrFromSlice(cm.Dst)
		if !ok || from.Port() == own && from.Addr().WithZone("") == at {
			continue // a forged one, which would be answered forever
		}
		conn := f.find(flowKey{from, at})
		if conn == nil {
			if conn, err = f.open(flowKey{from, at}); err != nil {
				continue
			}
			answer := &ipv6.ControlMessage{Src: cm.Dst}
			if at.IsLinkLocalUnicast() {
				answer.IfIndex = cm.IfIndex
			}
			p.wg.Go(func() { f.answer(flowKey{from, at}, conn, answer, addr) })
		}
		_, _ = conn.Write(buf[:n]) // a container's refusal is not for the next datagram
	}
}

// find returns the connection of a flow, and has it live on; nil: there is none.
func (f *flows) find(k flowKey) *net.UDPConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, ok := f.by[k]
	if !ok {
		return nil
	}
	now.last = time.Now()
	_ = now.conn.SetReadDeadline(now.last.Add(flowIdle))
	return now.conn
}

// open begins a flow.
func (f *flows) open(k flowKey) (*net.UDPConn, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.to))
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.by) >= proxyFlows {
		var oldest flowKey
		for k, o := range f.by {
			if first := f.by[oldest]; first == nil || o.last.Before(first.last) {
				oldest = k
			}
		}
		_ = f.by[oldest].conn.Close() // answer removes it
		delete(f.by, oldest)
	}
	now := time.Now()
	_ = conn.SetReadDeadline(now.Add(flowIdle))
	f.by[k] = &flow{conn, now}
	return conn, nil
}

// answer passes on what the container says, until nobody has said anything for long.
func (f *flows) answer(k flowKey, conn *net.UDPConn, as *ipv6.ControlMessage, to net.Addr) {
	defer f.end(k, conn)
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			continue // nobody listens there now
		case err != nil || f.find(k) != conn:
			return
		}
		_, _ = f.at.WriteTo(buf[:n], as, to)
	}
}

// end forgets a flow, unless another has its place.
func (f *flows) end(k flowKey, conn *net.UDPConn) {
	_ = conn.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.by[k]; now != nil && now.conn == conn {
		delete(f.by, k)
	}
}

func (f *flows) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, now := range f.by {
		_ = now.conn.Close()
	}
}
