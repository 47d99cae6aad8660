// Package host observes the host's NICs, addresses, gateways and switches, and
// keeps what eipnet changes on it outside routing and firewall: its bridges and
// veths, the null device, the interface group of managed NICs, and sysctls.
// Every value that was somebody else's is remembered and put back.
package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// maxDumps bounds the retries of a listing that was interrupted by changes.
const maxDumps = 20

// Originals remembers what a switch was before eipnet changed it. It survives
// restarts of eipnet; what an earlier boot of the host left is forgotten by
// [New]. Keys are "sysctl:<path>" (value "<boot id> old→new") and "group:<nic>"
// ("<boot id> old").
type Originals interface {
	Original(key string) (string, bool)
	SetOriginal(key, value string) error
	DeleteOriginal(key string) error
	// MoveOriginals records values and forgets keys at once: all of it, or none.
	MoveOriginals(set map[string]string, forget []string) error
	OriginalKeys() []string
}

// Options for [New].
type Options struct {
	Log       *slog.Logger // required
	Originals Originals    // required
	ProcSys   string       // default /proc/sys
	Root      string       // the host's root: lease files, a /proc/sys that can be written; default /
	// Gateways are next hops by NIC name that the administrator gave.
	Gateways map[string]netip.Addr
	// Include and Exclude are names or globs of links that are NICs, or none,
	// whatever they look like. Exclude wins. What belongs to our or Docker's
	// bridges, and the loopback, is never a NIC.
	Include, Exclude []string
	// Poke is called when something that Observe did not wait for became known.
	Poke func()
}

// Host is the host in whose network namespace [New] was called. Its methods
// may be called from several goroutines; where /proc/sys is read or written,
// from threads of that namespace.
type Host struct {
	o      Options
	log    *slog.Logger
	handle *netlink.Handle
	// sockets are for what the library has no call for.
	sockets map[int]*nl.SocketHandle
	probes  *probes
	boot    string // the kernel's id of this boot
	peers   peerMemory
	cgroups cgroups

	mu      sync.Mutex // serialises Apply
	wrote   []string   // see Wrote
	culprit atomic.Pointer[string]
	closing sync.Once
}

// New opens netlink in the present network namespace.
func New(o Options) (*Host, error) {
	if o.Log == nil || o.Originals == nil {
		return nil, errors.New("opening the host: a logger and a memory for originals have to be given")
	}
	for _, g := range append(append([]string(nil), o.Include...), o.Exclude...) {
		if _, err := path.Match(g, ""); err != nil {
			return nil, fmt.Errorf("reading the NIC pattern %q: %w", g, err)
		}
	}
	if o.ProcSys == "" {
		o.ProcSys = "/proc/sys"
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Poke == nil {
		o.Poke = func() {}
	}
	host := &Host{o: o, log: o.Log, cgroups: cgroups{root: path.Join(o.Root, cgroupMount)}}
	var err error
	if host.boot, err = host.readSysctl(bootID); err != nil {
		return nil, fmt.Errorf("opening the host: %w", err)
	}
	if err := host.forgetOtherBoots(); err != nil {
		o.Log.Warn("what was changed before the host's start is still remembered, to no effect", slog.Any("err", err))
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening netlink for the host: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("opening netlink for sysctls: %w", err)
	}
	host.handle, host.probes = h, newProbes(h, o.Log, o.Poke)
	host.sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	return host, nil
}

// Close ends probing and releases the sockets. What was applied stays. Closing
// again does nothing.
func (h *Host) Close() {
	h.closing.Do(func() {
		h.probes.close()
		h.handle.Close()
		for _, s := range h.sockets {
			s.Close()
		}
	})
}

// dump repeats a listing that changes interrupted: it may lack entries.
func dump[T any](list func() (T, error)) (T, error) {
	for n := 1; ; n++ {
		got, err := list()
		if n == maxDumps || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
}

// tables is one reading of links, addresses and routes.
type tables struct {
	links   []netlink.Link
	byName  map[string]netlink.Link
	bridges map[int]bool           // by link index
	vrfs    map[int]string         // names, by link index
	inside  map[int]bool           // those of container networks
	addrs   map[int][]netlink.Addr // by link index; IPv4 first, secondary ones after primaries
	routes  []netlink.Route        // unicast, not ours, one per next hop
}

func newTables(links []netlink.Link) *tables {
	t := &tables{
		links: links, byName: make(map[string]netlink.Link), bridges: make(map[int]bool), vrfs: make(map[int]string),
		inside: make(map[int]bool), addrs: make(map[int][]netlink.Addr),
	}
	for _, l := range links {
		at := l.Attrs()
		t.byName[at.Name] = l
		t.bridges[at.Index] = l.Type() == "bridge"
		t.inside[at.Index] = isOurs(l) || isDocker(l)
		if l.Type() == "vrf" {
			t.vrfs[at.Index] = at.Name
		}
	}
	return t
}

func (h *Host) readLinks(ctx context.Context) (*tables, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading the host: %w", err)
	}
	links, err := dump(h.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	t := newTables(links)
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	addrs = slices.DeleteFunc(addrs, func(a netlink.Addr) bool { return a.IPNet == nil })
	slices.SortStableFunc(addrs, func(a, b netlink.Addr) int { return cmp.Compare(rank(a), rank(b)) })
	for _, a := range addrs {
		t.addrs[a.LinkIndex] = append(t.addrs[a.LinkIndex], a)
	}
	return t, nil
}

func (h *Host) readAll(ctx context.Context) (*tables, error) {
	t, err := h.readLinks(ctx)
	if err != nil {
		return nil, err
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || r.Protocol == model.Protocol {
			continue
		}
		if len(r.MultiPath) == 0 {
			t.routes = append(t.routes, r)
		}
		for _, hop := range r.MultiPath {
			one := r
			one.MultiPath, one.LinkIndex, one.Gw, one.Via = nil, hop.LinkIndex, hop.Gw, hop.Via
			t.routes = append(t.routes, one)
		}
	}
	return t, nil
}

// rank orders addresses: IPv4 primaries, IPv4 secondaries, IPv6.
func rank(a netlink.Addr) int {
	switch {
	case !isIPv4(a):
		return 2
	case a.Flags&unix.IFA_F_SECONDARY != 0:
		return 1
	}
	return 0
}

func isIPv4(a netlink.Addr) bool { return len(a.IP) == net.IPv4len }

// addr, prefix and ipNet convert at the library's border; IPv4 is four bytes long.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
