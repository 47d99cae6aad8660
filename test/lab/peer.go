package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Seen is one thing that a peer's services were asked, with the source address that it came from.
type Seen struct {
	Time   time.Time
	Proto  string // http, tcp, udp, dns
	Src    netip.AddrPort
	Detail string // path, line, payload or name; empty for a new TCP connection
}

// String is for test failures.
func (s Seen) String() string {
	return fmt.Sprintf("%s %s from %s %q", s.Time.Format("15:04:05.000"), s.Proto, s.Src, s.Detail)
}

// Peer is a machine outside of the host (the site, or the far end of an extra leg), or ServeHost's
// services on the host. It offers echo
// services (HTTP :80 and :8000 GET /ip, TCP and UDP on EchoPorts, DNS :53), records who asked, and dials.
type Peer struct {
	Name string
	ns   *netNS
	from netip.Addr // IPv4 source of its own connections; the zero Addr: the kernel's choice

	mu      sync.Mutex
	seen    []Seen
	changed chan struct{}
	closers []io.Closer
	conns   map[net.Conn]struct{}
	closed  bool
	wg      sync.WaitGroup
}

func newPeer(name string) (*Peer, error) {
	ns, err := newNetNS(name)
	if err != nil {
		return nil, err
	}
	return peerIn(name, ns), nil
}

func peerIn(name string, ns *netNS) *Peer {
	return &Peer{Name: name, ns: ns, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
}

// ServeHost runs the echo services on addresses of the host, as processes of the host would. They end
// with the lab, or when the peer is closed.
func (l *Lab) ServeHost(ctx context.Context, addrs ...netip.Addr) (*Peer, error) {
	ns, err := netNSOf("host", l.Host.pid)
	if err != nil {
		return nil, err
	}
	p := peerIn("host", ns)
	if err := p.serve(ctx, addrs...); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	l.onHost = append(l.onHost, p)
	return p, nil
}

func (p *Peer) record(proto string, src net.Addr, detail string) netip.AddrPort {
	ap, err := netip.ParseAddrPort(src.String())
	if err == nil {
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, Seen{Time: time.Now(), Proto: proto, Src: ap, Detail: detail})
	close(p.changed)
	p.changed = make(chan struct{})
	return ap
}

// Seen lists all that was asked since the start or the last Reset, oldest first.
func (p *Peer) Seen() []Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// Count counts what match says yes to.
func (p *Peer) Count(match func(Seen) bool) int {
	n := 0
	for _, s := range p.Seen() {
		if match(s) {
			n++
		}
	}
	return n
}

// Reset forgets what was seen.
func (p *Peer) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = nil
}

// Wait returns the first thing that match says yes to, as soon as it is there.
func (p *Peer) Wait(ctx context.Context, match func(Seen) bool) (Seen, error) {
	for {
		p.mu.Lock()
		i := slices.IndexFunc(p.seen, match)
		var s Seen
		if i >= 0 {
			s = p.seen[i]
		}
		changed := p.changed
		p.mu.Unlock()
		if i >= 0 {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Seen{}, fmt.Errorf("waiting for %s to see it (%d others seen): %w", p.Name, len(p.Seen()), ctx.Err())
		}
	}
}

// Dial connects from the peer. The address is an IP literal with a port: a name would be looked up with
// the machine's resolver.
func (p *Peer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialIn(ctx, p.ns, p.from, network, addr)
}

// Get fetches a URL (with an IP literal) from the peer on a fresh connection and returns the body of a
// 200 answer; it takes 5 s at most.
func (p *Peer) Get(ctx context.Context, url string) (string, error) {
	return getIn(ctx, p.ns, p.from, url)
}

// Do runs fn on a thread in the peer's network namespace.
func (p *Peer) Do(fn func() error) error { return p.ns.Do(fn) }

func dialIn(ctx context.Context, ns *netNS, from netip.Addr, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dialing from %s: the address must be an IP literal: %w", ns.name, err)
	}
	d := net.Dialer{}
	if from.IsValid() && from.Is4() == to.Addr().Unmap().Is4() {
		local := netip.AddrPortFrom(from, 0)
		d.LocalAddr = net.Addr(net.TCPAddrFromAddrPort(local))
		if len(network) >= 3 && network[:3] == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
	}
	var conn net.Conn
	err = ns.Do(func() error {
		c, err := d.DialContext(ctx, network, addr)
		conn = c
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dialing from %s: %w", ns.name, err)
	}
	return conn, nil
}

// getTimeout bounds one Get: a cloud that drops packets answers nothing at all.
const getTimeout = 5 * time.Second

func getIn(ctx context.Context, ns *netNS, from netip.Addr, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialIn(ctx, ns, from, network, addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("getting %s: %w", url, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("getting %s: %s: %s", url, resp.Status, body)
	}
	return string(body), nil
}

// Close ends the services and every connection that they hold.
func (p *Peer) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	var errs []error
	for _, c := range p.closers {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return errors.Join(append(errs, p.ns.Close())...)
}
