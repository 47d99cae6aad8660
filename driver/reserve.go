package driver

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// Reservation is one host port that is published.
type Reservation struct {
	Proto model.Proto
	Addr  netip.Addr // unspecified: all of its family
	Port  uint16
}

// Claim is a reservation that somebody asks for.
type Claim struct {
	Reservation
	Owner string
	Proxy Proxied
}

// Proxied says where a proxy takes what comes to a port; the zero one: there is none.
type Proxied struct {
	To       netip.AddrPort
	Loopback bool // only what comes to ::1
}

// Reserver holds one bound socket per published host port, so that a clash is
// an error at docker run, and nobody else takes the port while it is published.
// TCP's listen, so that what remains of earlier connections keeps nobody from
// the port, and filters drop all that no proxy is for. The NAT rules take that
// before; and when the rules are lost, it waits for them to come back.
type Reserver struct {
	shared *shared // by the proxies

	mu   sync.Mutex
	held map[Reservation]holding
}

type holding struct {
	socket *os.File
	owner  string
	to     Proxied
	proxy  *proxy // nil: none yet
}

func (h holding) close() {
	_ = h.proxy.close()
	_ = h.socket.Close()
}

// NewReserver returns a Reserver that holds nothing.
func NewReserver(log *slog.Logger) *Reserver {
	return &Reserver{shared: newShared(log), held: make(map[Reservation]holding)}
}

// Set makes the held sockets be exactly those that are claimed, one for each
// reservation. It belongs to one claim: to its owner's of the last time, else
// to the first by owner. What is still claimed is never unbound; what is not is
// released first, so that a port can move from one address to all. Proxies that
// are not claimed any more end, with all their connections.
//
// The result has an error for each claim that came to nothing, and is nil if
// there is none. For a claim that is there twice it says that the second did.
func (r *Reserver) Set(claims []Claim) map[Claim]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	claims = slices.SortedFunc(slices.Values(claims), compareClaims)
	winners := make(map[Reservation]string)
	for _, c := range claims {
		if _, ok := winners[c.Reservation]; !ok || r.held[c.Reservation].owner == c.Owner {
			winners[c.Reservation] = c.Owner
		}
	}
	maps.DeleteFunc(r.held, func(res Reservation, h holding) bool {
		_, claimed := winners[res]
		if !claimed {
			h.close()
		}
		return !claimed
	})
	var errs map[Claim]error
	for i, c := range claims {
		var err error
		switch {
		case i > 0 && claims[i-1] == c, c.Owner != winners[c.Reservation]:
			err = cmp.Or(errs[c], bindError(c.Addr, c.Port))
		default:
			err = r.hold(c)
		}
		if err == nil {
			continue
		}
		if errs == nil {
			errs = make(map[Claim]error)
		}
		errs[c] = err
	}
	return errs
}

// Serve begins the proxies that are claimed and do not run yet.
func (r *Reserver) Serve() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ports := make(map[uint16]bool)
	for res, h := range r.held {
		if h.to.To.IsValid() && res.Proto == model.UDP {
			ports[res.Port] = true
		}
	}
	r.shared.udp.Store(&ports)
	var errs []error
	for res, h := range r.held {
		if h.proxy != nil || !h.to.To.IsValid() {
			continue
		}
		var err error
		if h.proxy, err = startProxy(h.socket, res.Proto, h.to, r.shared); err != nil {
			errs = append(errs, fmt.Errorf("taking what comes to %v to %v: %w", netip.AddrPortFrom(res.Addr, res.Port), h.to.To, err))
			continue
		}
		r.held[res] = h
	}
	return errors.Join(errs...)
}

// hold gives the claim its reservation's socket.
func (r *Reserver) hold(c Claim) error {
	h, held := r.held[c.Reservation]
	if !held {
		fd, err := bind(c.Reservation)
		if err != nil {
			return err
		}
		h.socket = os.NewFile(uintptr(fd), "reserved port")
	}
	h.owner = c.Owner
	if h.to != c.Proxy {
		err := h.proxy.close()
		h.to, h.proxy = c.Proxy, nil
		if err != nil { // it might go on being heard
			h.close()
			delete(r.held, c.Reservation)
			return fmt.Errorf("ending the proxy of %v: %w", netip.AddrPortFrom(c.Addr, c.Port), err)
		}
	}
	r.held[c.Reservation] = h
	return nil
}

// Close releases everything.
func (r *Reserver) Close() { r.Set(nil) }

// Held lists what is reserved now and for whom, sorted.
func (r *Reserver) Held() []Claim {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Claim
	for res, h := range r.held {
		out = append(out, Claim{Reservation: res, Owner: h.owner, Proxy: h.to})
	}
	slices.SortFunc(out, compareClaims)
	return out
}

func compareClaims(a, b Claim) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Owner, b.Owner))
}

// Pick returns the first of the candidates that free accepts and that can be
// bound now on addr (zero: all addresses of both families). It is not held
// afterwards.
func Pick(proto model.Proto, addr netip.Addr, candidates iter.Seq[uint16], free func(uint16) bool) (uint16, error) {
	for port := range candidates {
		if !free(port) {
			continue
		}
		fd, err := pickSocket(proto, addr, port)
		switch {
		case err == nil:
			_ = unix.Close(fd)
			return port, nil
		case !errors.Is(err, unix.EADDRINUSE):
			return 0, err
		}
	}
	return 0, errAllAllocated
}

// pickSocket binds as bind does, but for the zero address to both families, as
// far as the kernel has both.
func pickSocket(proto model.Proto, addr netip.Addr, port uint16) (int, error) {
	if addr.IsValid() {
		return bind(Reservation{Proto: proto, Addr: addr, Port: port})
	}
	fd, err := bindAs(proto, netip.AddrPortFrom(netip.IPv6Unspecified(), port), false)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return bind(Reservation{Proto: proto, Addr: netip.IPv4Unspecified(), Port: port})
	}
	return fd, err
}

func bind(r Reservation) (int, error) {
	return bindAs(r.Proto, netip.AddrPortFrom(r.Addr, r.Port), true)
}

// option is one setsockopt with an integer value.
type option struct{ level, name, value int }

// bindAs opens a socket that drops all, and binds it. TCP's listen at once: with
// SO_REUSEADDR, two bound sockets of which none does would share the port.
func bindAs(proto model.Proto, addr netip.AddrPort, v6only bool) (fd int, err error) {
	domain, kind, ipproto := unix.AF_INET, unix.SOCK_STREAM, 0
	// An address that is away for a moment (DHCP, a NIC that flaps) stays reserved.
	options := []option{{unix.SOL_IP, unix.IP_FREEBIND, 1}}
	if addr.Addr().Is6() {
		domain = unix.AF_INET6
		options = []option{{unix.SOL_IPV6, unix.IPV6_FREEBIND, 1}, {unix.SOL_IPV6, unix.IPV6_V6ONLY, 0}}
		if v6only {
			options[1].value = 1
		}
	}
	switch proto {
	case model.TCP:
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	case model.UDP:
		kind = unix.SOCK_DGRAM
	case model.SCTP:
		ipproto = unix.IPPROTO_SCTP
	default:
		return -1, fmt.Errorf("reserving port %d: %v is not supported", addr.Port(), proto)
	}
	fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, ipproto)
	if errors.Is(err, unix.EPROTONOSUPPORT) && proto == model.SCTP {
		return -1, errNoSCTP
	}
	if err != nil {
		return -1, fmt.Errorf("opening a socket to reserve %v: %w", addr, os.NewSyscallError("socket", err))
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
	}()
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fd, fmt.Errorf("reserving %v: %w", addr, os.NewSyscallError("setsockopt", err))
		}
	}
	if proto != model.SCTP {
		if err := attach(fd, dropAll); err != nil {
			return fd, fmt.Errorf("reserving %v: %w", addr, err)
		}
	}
	err = unix.Bind(fd, sockaddr(addr))
	if err == nil && proto == model.TCP {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fd, bindError(addr.Addr(), addr.Port())
	case err != nil:
		return fd, fmt.Errorf("reserving %v: %w", addr, os.NewSyscallError("bind", err))
	}
	return fd, nil
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	}
	return &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())}
}

// errNoSCTP is what publishing an SCTP port comes to on such a kernel. Asking for
// the socket has the kernel load the module, where there is one.
var errNoSCTP = errors.New("SCTP ports cannot be published: this host's kernel has no SCTP (modprobe sctp)")

// errAllAllocated is Docker's own text, as the next one.
var errAllAllocated = errors.New("all ports are allocated")

// allocatedError is Docker's own text, which many tools look for.
type allocatedError struct{ addr netip.AddrPort }

func (e allocatedError) Error() string {
	return fmt.Sprintf("Bind for %v failed: port is already allocated", e.addr)
}

func (allocatedError) Unwrap() error { return unix.EADDRINUSE }

// bindError says that the port is taken; the zero address stands for all.
func bindError(addr netip.Addr, port uint16) error {
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	return allocatedError{netip.AddrPortFrom(addr, port)}
}
