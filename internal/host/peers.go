package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// seenPeer is what is known of the far end of a port. The two ends of a veth
// never part, so a port's far end is the same device wherever it is moved.
type seenPeer struct {
	order uint64 // of first sight
	mac   net.HardwareAddr
	final bool // seen in use: what the far end says later does not count
	told  bool // that its MAC is another port's
}

// peerMemory is what [Host.Peers] remembers.
type peerMemory struct {
	mu    sync.Mutex
	next  uint64
	peers map[int]*seenPeer // by the port's index
}

// Peers tells which ports of the bridges lead to which container interface: by
// port name, the MAC address that the far end of the veth had at first sight.
// A container with NET_ADMIN can change it later; that does not count. First
// sight is when the far end is up in a namespace of its own: an engine gives
// the MAC after it has moved the far end, and before it sets it up. Until then
// it is the present MAC.
//
// No namespace is entered. Ports that are no veths, or whose far end is just
// going, are left out. So is, of two ports of a bridge that claim one MAC, the
// one that was seen later.
func (h *Host) Peers(ctx context.Context, bridges []string) (map[string]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("finding the peers of bridge ports: %w", err)
	}
	links, err := dump(h.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("finding the peers of bridge ports: listing links: %w", err)
	}
	byIndex := make(map[int]netlink.Link, len(links))
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	m := &h.peers
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers == nil {
		m.peers = make(map[int]*seenPeer)
	}
	maps.DeleteFunc(m.peers, func(port int, _ *seenPeer) bool { return byIndex[port] == nil })

	var errs []error
	found := make(map[netlink.Link]*seenPeer)
	var ports []netlink.Link
	for _, l := range links {
		bridge, ok := byIndex[l.Attrs().MasterIndex]
		if !ok || l.Type() != "veth" || bridge.Type() != "bridge" || !slices.Contains(bridges, bridge.Attrs().Name) {
			continue
		}
		peer, err := h.peer(m, l, byIndex)
		if err != nil {
			errs = append(errs, fmt.Errorf("finding the peer of port %s: %w", l.Attrs().Name, err))
		}
		if peer != nil {
			ports = append(ports, l)
			found[l] = peer
		}
	}
	return h.oneEach(ports, found, byIndex), errors.Join(errs...)
}

// oneEach gives each MAC of a bridge to the port that was seen first with it.
func (h *Host) oneEach(ports []netlink.Link, found map[netlink.Link]*seenPeer, byIndex map[int]netlink.Link) map[string]string {
	slices.SortFunc(ports, func(a, b netlink.Link) int { return cmp.Compare(found[a].order, found[b].order) })
	type claim struct {
		bridge int
		mac    string
	}
	owner := make(map[claim]string)
	out := make(map[string]string, len(ports))
	for _, l := range ports {
		at, peer := l.Attrs(), found[l]
		c := claim{at.MasterIndex, peer.mac.String()}
		first, taken := owner[c]
		if !taken {
			owner[c], out[at.Name], peer.told = at.Name, c.mac, false
			continue
		}
		if !peer.told {
			peer.told = true
			h.log.Warn("two ports of a bridge claim one MAC address; the first keeps it",
				slog.String("bridge", byIndex[at.MasterIndex].Attrs().Name), slog.String("mac", c.mac),
				slog.String("port", first), slog.String("left_out", at.Name))
		}
	}
	return out
}

// home is the netlink library's namespace id of a far end in our own namespace.
const home = -1

// peer returns what is known of a port's far end, and looks where nothing
// final is; nil: it is just going. A final one that is back in our own
// namespace was brought there by the engine, and begins anew.
func (h *Host) peer(m *peerMemory, port netlink.Link, byIndex map[int]netlink.Link) (*seenPeer, error) {
	at := port.Attrs()
	known := m.peers[at.Index]
	if known != nil && known.final && at.NetNsID != home {
		return known, nil
	}
	var far *netlink.LinkAttrs
	if at.NetNsID != home {
		var err error
		if far, err = h.linkIn(at.NetNsID, at.ParentIndex); err != nil {
			return known, err
		}
	} else if l, ok := byIndex[at.ParentIndex]; ok {
		far = l.Attrs()
	}
	// The far end's own far end is the port; else it has just moved or gone.
	if far == nil || far.ParentIndex != at.Index || len(far.HardwareAddr) != 6 {
		return known, nil
	}
	if known == nil {
		m.next++
		known = &seenPeer{order: m.next}
		m.peers[at.Index] = known
	}
	if !bytes.Equal(known.mac, far.HardwareAddr) {
		known.mac, known.told = slices.Clone(far.HardwareAddr), false
	}
	known.final = at.NetNsID != home && far.RawFlags&unix.IFF_UP != 0
	return known, nil
}

// linkIn asks for a link of the namespace with this id: RTM_GETLINK with
// IFLA_TARGET_NETNSID, from Linux 4.20 on. It returns nil where there is none.
func (h *Host) linkIn(netnsID, index int) (*netlink.LinkAttrs, error) {
	const targetNetNSID = 46 // IFLA_TARGET_NETNSID
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.Sockets = h.sockets
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(targetNetNSID, nl.Uint32Attr(uint32(netnsID))))
	got, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	// An id that belongs to no namespace (any more) is EINVAL.
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking for link %d of namespace %d: %w", index, netnsID, err)
	}
	if len(got) != 1 {
		return nil, nil
	}
	l, err := netlink.LinkDeserialize(nil, got[0])
	if err != nil {
		return nil, fmt.Errorf("reading link %d of namespace %d: %w", index, netnsID, err)
	}
	return l.Attrs(), nil
}
