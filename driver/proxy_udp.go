package driver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/delay"
)

// flowIdle is how long a UDP flow may be silent. The kernel forgets one that was not
// answered after 30 seconds (nf_conntrack_udp_timeout), and with it by which NIC
// the answer has to leave.
const flowIdle = 29 * time.Second

// maxDatagram is the longest UDP payload.
const maxDatagram = 65535

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
	*proxy
	at *ipv6.PacketConn

	mu sync.Mutex
	by map[flowKey]*flow
}

func (f *flows) receive(ctx context.Context) {
	defer f.closeAll()
	buf := make([]byte, maxDatagram)
	for {
		n, cm, addr, err := f.at.ReadFrom(buf)
		if err != nil || cm == nil {
			if err != nil && !delay.For(ctx, acceptPause) {
				return
			}
			continue
		}
		at, ok := netip.AddrFromSlice(cm.Dst)
		key := flowKey{addr.(*net.UDPAddr).AddrPort(), at}
		conn := f.find(key)
		if conn == nil {
			if !ok || f.ownPort(key.from) {
				continue // a forged one, which would be answered forever
			}
			if conn = f.open(key); conn == nil {
				continue
			}
			answer := &ipv6.ControlMessage{Src: cm.Dst}
			if at.IsLinkLocalUnicast() {
				answer.IfIndex = cm.IfIndex
			}
			f.wg.Go(func() { f.answer(key, conn, answer, addr) })
		}
		send(conn, buf[:n])
	}
}

// send sends a datagram, once more if the container refused the one before: the
// kernel then tells of that and sends nothing.
func send(conn *net.UDPConn, b []byte) {
	if _, err := conn.Write(b); errors.Is(err, unix.ECONNREFUSED) {
		_, _ = conn.Write(b)
	}
}

// ownPort reports whether that is a port of a proxy, of this host. To an address
// of its own the kernel sends with the very same address.
func (f *flows) ownPort(from netip.AddrPort) bool {
	if !(*f.udp.Load())[from.Port()] {
		return false
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(from))
	if err != nil {
		return true
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr() == from.Addr()
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

// open begins a flow; nil: there is no room for it now.
func (f *flows) open(k flowKey) *net.UDPConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	took := f.proxy.flows.take()
	if !took || len(f.by) >= proxyFlows {
		f.endOldest()
	}
	if !took {
		return nil // whose room that was gives it back soon
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.to))
	if err != nil {
		f.proxy.flows.give()
		return nil
	}
	now := time.Now()
	_ = conn.SetReadDeadline(now.Add(flowIdle))
	f.by[k] = &flow{conn, now}
	return conn
}

// endOldest ends the flow that was silent for the longest, if there is any.
func (f *flows) endOldest() {
	var oldest flowKey
	for k, o := range f.by {
		if first := f.by[oldest]; first == nil || o.last.Before(first.last) {
			oldest = k
		}
	}
	if o := f.by[oldest]; o != nil {
		_ = o.conn.Close()
		delete(f.by, oldest)
	}
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
	f.proxy.flows.give()
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
