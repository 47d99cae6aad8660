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

	"github.com/eipnet/eipnet/internal/model"
)

const (
	watchBuffer   = 1 << 20 // bytes; a veth's coming and going is about 50 messages
	watchRetry    = 50 * time.Millisecond
	watchRetryMax = 5 * time.Second
)

var watchGroups = []uint{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Watch pokes whenever links, addresses, routes, rules or rp_filter and
// forwarding switches change, our own changes included, until the context is
// cancelled, and returns nil then. The kernel tells nothing of arp_ignore and
// arp_announce. Watch pokes once when it begins to see changes, and again after
// it may have missed some. It watches the network namespace of the calling thread.
//
// portUp is told the bridge when a veth that is a port of it gets carrier, which
// an engine's does as soon as the container's end is set up, before any process
// runs there. Neither function may block.
func (h *Host) Watch(ctx context.Context, poke func(), portUp func(bridge string)) error {
	retry := watchRetry
	for {
		began := time.Now()
		err := h.watchOnce(ctx, poke, portUp)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the error is that the socket was closed
		}
		h.log.Warn("watching the network interrupted", slog.Any("err", err))
		if time.Since(began) > watchRetryMax {
			retry = watchRetry
		}
		if !pause(ctx, retry) {
			return nil
		}
		retry = min(2*retry, watchRetryMax)
	}
}

func (h *Host) watchOnce(ctx context.Context, poke func(), portUp func(bridge string)) error {
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
	poke()
	up := make(portsUp)
	for {
		msgs, from, err := s.Receive()
		if err != nil {
			return fmt.Errorf("receiving network changes: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for _, m := range msgs {
			if bridge := h.risen(m, up); bridge != "" {
				portUp(bridge)
			}
		}
		if slices.ContainsFunc(msgs, matters) {
			poke()
		}
		for _, m := range msgs {
			if who := author(m.Header.Pid); who != "" && takesFromUs(m) {
				h.culprit.Store(&who)
			}
		}
	}
}

// portsUp are the veths, by index, that are known to be ports with carrier.
type portsUp map[int32]bool

// risen names the bridge of which a veth is told to be a port with carrier, as
// far as that is news.
func (h *Host) risen(m syscall.NetlinkMessage, up portsUp) string {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
		return ""
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	switch {
	case info.Family == unix.AF_BRIDGE: // of the port alone; the link's own message follows or came before
		return ""
	case m.Header.Type == unix.RTM_DELLINK, info.Flags&unix.IFF_LOWER_UP == 0:
		delete(up, info.Index)
		return ""
	case up[info.Index]:
		return ""
	}
	l, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil || l.Type() != "veth" || l.Attrs().MasterIndex == 0 {
		return ""
	}
	bridge, err := h.handle.LinkByIndex(l.Attrs().MasterIndex)
	if err != nil {
		return "" // gone already
	}
	up[info.Index] = true
	return bridge.Attrs().Name
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
