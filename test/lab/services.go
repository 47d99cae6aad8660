package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
)

const dnsPort = 53

// EchoPorts is where peers echo TCP lines and datagrams. There is one more of them than NICs: a test can
// have each NIC's containers talk to another port, and tells by a packet's destination whose it is.
var EchoPorts = []uint16{7, 7000, 7001, 7002}

// serve opens the peer's services on each address.
func (p *Peer) serve(ctx context.Context, addrs ...netip.Addr) error {
	return p.ns.Do(func() error {
		for _, a := range addrs {
			if err := p.serveOn(ctx, a); err != nil {
				return fmt.Errorf("serving on %s of %s: %w", a, p.Name, err)
			}
		}
		return nil
	})
}

func (p *Peer) serveOn(ctx context.Context, a netip.Addr) error {
	var lc net.ListenConfig
	streams := map[uint16]func(net.Listener){
		80: p.serveHTTP, 8000: p.serveHTTP, dnsPort: func(l net.Listener) { p.accept(l, p.dnsTCP) },
	}
	answers := map[uint16]func(net.Addr, []byte) []byte{dnsPort: p.dnsUDP}
	for _, port := range EchoPorts {
		streams[port], answers[port] = func(l net.Listener) { p.accept(l, p.echoTCP) }, p.echoUDP
	}
	for port, serve := range streams {
		l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			return err
		}
		p.closers = append(p.closers, l)
		p.wg.Go(func() { serve(l) })
	}
	for port, answer := range answers {
		c, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			return err
		}
		p.closers = append(p.closers, c)
		p.wg.Go(func() { serveUDP(c, answer) })
	}
	return nil
}

func (p *Peer) serveHTTP(l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ip", func(w http.ResponseWriter, r *http.Request) {
		src := p.record("http", addrText(r.RemoteAddr), r.URL.Path)
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, src.Addr())
	})
	srv := &http.Server{Handler: mux, ConnState: func(c net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			p.hold(c)
		case http.StateClosed, http.StateHijacked:
			p.release(c)
		}
	}}
	_ = srv.Serve(l) // ends when the listener is closed
}

// addrText is a net.Addr that only has its text.
type addrText string

func (addrText) Network() string  { return "" }
func (a addrText) String() string { return string(a) }

// hold remembers an accepted connection for Close; false means that the peer is closed already.
func (p *Peer) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

// release closes a connection with a reset, which is said once: a FIN would be repeated to whoever has the
// client's address next.
func (p *Peer) release(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may be closed already
	}
	c.Close()
}

func (p *Peer) accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !p.hold(c) {
			return
		}
		p.wg.Go(func() {
			defer p.release(c)
			serve(c)
		})
	}
}

// echoTCP says who the client is, then gives every line back.
func (p *Peer) echoTCP(c net.Conn) {
	src := p.record("tcp", c.RemoteAddr(), "")
	if _, err := fmt.Fprintln(c, src); err != nil {
		return
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		p.record("tcp", c.RemoteAddr(), in.Text())
		if _, err := fmt.Fprintln(c, in.Text()); err != nil {
			return
		}
	}
}

// echoUDP answers but app stream, which does not wait for it: when its NIC is given up, the host would refuse what comes late.
func (p *Peer) echoUDP(from net.Addr, payload []byte) []byte {
	src := p.record("udp", from, string(payload))
	if bytes.HasPrefix(payload, []byte("stream ")) {
		return nil
	}
	return fmt.Appendf(nil, "%s %s", src, payload)
}

func serveUDP(c net.PacketConn, answer func(net.Addr, []byte) []byte) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if out := answer(from, buf[:n]); out != nil {
			_, _ = c.WriteTo(out, from) // an answer that cannot be sent is a lost datagram
		}
	}
}

// SiteName is the one name that the peers' DNS servers know: SiteAddr.
const SiteName = "site.test"

func (p *Peer) dnsUDP(from net.Addr, query []byte) []byte {
	name, answer := dnsAnswer(query)
	if answer != nil {
		p.record("dns", from, name)
	}
	return answer
}

func (p *Peer) dnsTCP(c net.Conn) {
	for {
		var size uint16
		if binary.Read(c, binary.BigEndian, &size) != nil {
			return
		}
		query := make([]byte, size)
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		answer := p.dnsUDP(c.RemoteAddr(), query)
		if answer == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// dnsAnswer answers a query of one question: an A record for SiteName, nothing for its other types, and
// NXDOMAIN for every other name. It returns nil for what is no query.
func dnsAnswer(q []byte) (string, []byte) {
	const header, response, authoritative, nxdomain, typeA = 12, 0x80, 0x04, 3, 1
	if len(q) < header || q[2]&response != 0 || binary.BigEndian.Uint16(q[4:]) != 1 {
		return "", nil
	}
	name, i := "", header
	for i < len(q) && q[i] != 0 {
		end := i + 1 + int(q[i])
		if end >= len(q) || q[i] > 63 {
			return "", nil
		}
		if name != "" {
			name += "."
		}
		name += string(q[i+1 : end])
		i = end
	}
	if i+5 > len(q) {
		return "", nil
	}
	qtype := binary.BigEndian.Uint16(q[i+1:])
	out := append([]byte(nil), q[:i+5]...)
	out[2] |= response | authoritative
	out[3] &^= 0x0f
	clear(out[6:header]) // no answers, authorities or additional records yet
	switch {
	case name != SiteName:
		out[3] |= nxdomain
	case qtype == typeA:
		out[7] = 1
		out = append(out, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 1, 0, 4)
		out = append(out, SiteAddr.AsSlice()...)
	}
	return name, out
}
