package host

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
)

const (
	watchBuffer   = 1 << 20 // bytes; a veth's coming and going is about 50 messages
	watchRetry    = 50 * time.Millisecond
	watchRetryMax = 500 * time.Millisecond
)

var watchGroups = []uint{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Notices are what [Host.Watch] calls. None may block.
type Notices struct {
	// Changed: links, addresses, routes, rules or rp_filter and forwarding
	// switches changed, our own changes included. The kernel tells nothing of
	// arp_ignore and arp_announce. It is called once when Watch begins to see
	// changes, and again after it may have missed some.
	Changed func()
	// Turned: a managed NIC got or lost carrier, or was switched up or down.
	Turned func()
	// PortUp: a veth that is a port of the bridge got carrier, which an engine's
	// does as soon as the container's end is set up, before any process runs there.
	PortUp func(bridge string)
}

// Watch tells of changes until the context is cancelled, and returns nil then.
// It watches the network namespace of the calling thread.
func (h *Host) Watch(ctx context.Context, n Notices) error {
	retry := watchRetry
	for {
		began := time.Now()
		err := h.watchOnce(ctx, n)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the error is that the socket was closed
		}
		h.log.Warn("watching the network interrupted", slog.Any("err", err))
		if time.Since(began) > watchRetryMax {
			retry = watchRetry
		}
		if !delay.For(ctx, retry) {
			return nil
		}
		retry = min(2*retry, watchRetryMax)
	}
}

func (h *Host) watchOnce(ctx context.Context, n Notices) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, watchGroups...)
	if err != nil {
		return fmt.Errorf("subscribing to network changes: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		h.log.Debug("buffer for network changes not enlarged", slog.Any("err", err))
	}
	n.Changed()
	seen := make(seenLinks)
	for {
		msgs, from, err := s.Receive()
		if err != nil {
			return fmt.Errorf("receiving network changes: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for _, m := range msgs {
			h.tell(n, m, seen)
			if who := author(m.Header.Pid); who != "" && takesFromUs(m) {
				h.culprit.Store(&who)
			}
		}
		if slices.ContainsFunc(msgs, matters) {
			n.Changed()
		}
	}
}

// working are the flags of a link that carries something.
const working = unix.IFF_UP | unix.IFF_LOWER_UP

// seenLinks are the flags, of those in working, that links had when they were last told of, by index.
type seenLinks map[int32]uint32

// tell tells of a port or a managed NIC that turned, as far as that is news.
func (h *Host) tell(n Notices, m syscall.NetlinkMessage, seen seenLinks) {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
		return
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	if info.Family == unix.AF_BRIDGE { // of the port alone; the link's own message follows or came before
		return
	}
	before, known := seen[info.Index]
	if m.Header.Type == unix.RTM_DELLINK {
		delete(seen, info.Index)
		return
	}
	now := info.Flags & working
	if seen[info.Index] = now; known && now == before {
		return
	}
	l, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil {
		return
	}
	switch at := l.Attrs(); {
	case at.Group == model.NICGroup && known:
		if now == working {
			h.askAgain(at.Index)
		}
		n.Turned()
	case now&unix.IFF_LOWER_UP != 0 && before&unix.IFF_LOWER_UP == 0 && at.MasterIndex != 0 && l.Type() == "veth":
		if bridge, err := h.handle.LinkByIndex(at.MasterIndex); err == nil { // else it is gone already
			n.PortUp(bridge.Attrs().Name)
		}
	}
}

// askAgain forgets the neighbours that a NIC which just turned up was asked for
// in vain: the kernel asks once a second, and so would find the gateway late.
func (h *Host) askAgain(index int) {
	for _, f := range model.Families {
		list, err := dump(func() ([]netlink.Neigh, error) { return h.handle.NeighList(index, family(f)) })
		if err != nil {
			h.log.Debug("neighbours not listed", slog.Int("ifindex", index), slog.Any("err", err))
		}
		for _, n := range list {
			if n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 {
				continue
			}
			if err := h.handle.NeighDel(&n); err != nil {
				h.log.Debug("neighbour not asked for again", slog.String("neighbour", n.IP.String()), slog.Any("err", err))
			}
		}
	}
}

// Wrote names what Apply wrote since this was last asked.
func (h *Host) Wrote() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	wrote := h.wrote
	h.wrote = nil
	return wrote
}

// Culprit names the process that last deleted a rule or route of ours; empty if
// there was none, or the kernel did not tell.
func (h *Host) Culprit() string {
	if who := h.culprit.Load(); who != nil {
		return *who
	}
	return ""
}

// takesFromUs reports whether the message tells that a rule or route of ours was deleted.
func takesFromUs(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_DELROUTE:
		return nl.DeserializeRtMsg(m.Data).Protocol == model.Protocol
	case unix.RTM_DELRULE: // struct fib_rule_hdr has the same layout, but the protocol is an attribute
		attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
		return err == nil && slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
			return a.Attr.Type == nl.FRA_PROTOCOL && len(a.Value) == 1 && a.Value[0] == model.Protocol
		})
	}
	return false
}

// author names the process whose socket asked for a change. The first netlink
// socket of a process bears its id, further ones have numbers above all ids.
func author(port uint32) string {
	const maxPID = 1 << 22
	if port == 0 || port > maxPID || int(port) == os.Getpid() {
		return ""
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", port))
	if err != nil {
		return fmt.Sprintf("process %d, which has ended", port)
	}
	return "process " + strings.TrimSpace(string(comm))
}

// matters sorts out the noise of hosts with many routes and many bridge ports.
func matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r := nl.DeserializeRtMsg(m.Data)
		ours := r.Protocol == model.Protocol
		return r.Flags&unix.RTM_F_CLONED == 0 && (ours || r.Table == unix.RT_TABLE_MAIN || r.Dst_len == 0)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return nl.DeserializeIfInfomsg(m.Data).Family != unix.AF_BRIDGE
	}
	return true
}
