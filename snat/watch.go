package snat

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	watchBuffer   = 8 << 20 // bytes; a transaction of 60,000 elements overran 1 MiB
	watchRetry    = 50 * time.Millisecond
	watchRetryMax = 5 * time.Second

	nftAttrTable = 1 // NFTA_…_TABLE of every kind of object
)

// Watch tells what others change in nftables, until ctx ends, and returns nil
// then: tables is called when something of our tables was changed by another
// process, accepts when DOCKER-USER, our chain beside it or FORWARD, which leads there, may have been. Both
// are called when it begins to see changes, and again after it may have missed
// some. A table that is owned cannot be changed by others; iptables-legacy
// tells nothing. It watches the network namespace of the calling thread.
func (m *Manager) Watch(ctx context.Context, tables, accepts func()) error {
	retry := watchRetry
	for {
		began := time.Now()
		err := m.watchOnce(ctx, tables, accepts)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the error is that the socket was closed
		}
		m.log.Warn("watching nftables interrupted", slog.Any("err", err))
		if time.Since(began) > watchRetryMax {
			retry = watchRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		retry = min(2*retry, watchRetryMax)
	}
}

func (m *Manager) watchOnce(ctx context.Context, tables, accepts func()) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("subscribing to changes of nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		m.log.Debug("buffer for changes of nftables not enlarged", slog.Any("err", err))
	}
	tables()
	accepts()
	var t transaction
	for {
		msgs, from, err := s.Receive()
		if err != nil {
			return fmt.Errorf("receiving changes of nftables: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for _, msg := range msgs {
			who, ended := t.add(msg)
			if !ended {
				continue
			}
			whole := t
			t = transaction{}
			if !whole.tables && !whole.accepts || who.ours() {
				continue
			}
			name := who.String()
			m.culprit.Store(&name)
			if whole.tables {
				tables()
			}
			if whole.accepts {
				accepts()
			}
		}
	}
}

// Culprit names the process that last changed what is ours, or is beside it;
// empty if there was none.
func (m *Manager) Culprit() string {
	if name := m.culprit.Load(); name != nil {
		return *name
	}
	return ""
}

// Wrote names what was written since it was last asked.
func (m *Manager) Wrote() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	wrote := m.wrote
	m.wrote = nil
	return wrote
}

// transaction is what was told so far of one change of the ruleset. The message
// that names the new generation, and who made it, comes last.
type transaction struct{ tables, accepts bool }

// add takes in a message and reports whether it was the last of the transaction.
func (t *transaction) add(msg syscall.NetlinkMessage) (who author, ended bool) {
	const header = 4 // struct nfgenmsg: family, version, resource id
	if msg.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(msg.Data) < header {
		return who, false
	}
	attrs, err := nl.ParseRouteAttr(msg.Data[header:])
	if err != nil {
		return who, false
	}
	values := make(map[uint16][]byte, len(attrs))
	for _, a := range attrs {
		values[a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = a.Value
	}
	text := func(attr uint16) string { return unix.ByteSliceToString(values[attr]) }
	kind, family := msg.Header.Type&0xff, msg.Data[0]
	if kind == unix.NFT_MSG_NEWGEN {
		if pid := values[unix.NFTA_GEN_PROC_PID]; len(pid) == 4 {
			who.thread = int(binary.BigEndian.Uint32(pid))
		}
		who.name = text(unix.NFTA_GEN_PROC_NAME)
		return who, true
	}
	var chain string
	switch kind {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain = text(unix.NFTA_CHAIN_NAME)
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = text(unix.NFTA_RULE_CHAIN)
	}
	switch table := text(nftAttrTable); {
	case table == tableName && (family == unix.NFPROTO_INET || family == unix.NFPROTO_BRIDGE):
		t.tables = true
	case table == "filter" && (family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6):
		t.accepts = t.accepts || chain == dockerUser || chain == eipnetForward || chain == forwardChain || kind == unix.NFT_MSG_DELTABLE
	}
	return who, false
}

// author is who made a change, as the kernel tells it: a thread and its name.
type author struct {
	thread int
	name   string
}

// ours reports whether the thread is one of this process. In another PID
// namespace it never is, which costs a look that finds nothing to do.
func (a author) ours() bool {
	_, err := os.Stat("/proc/self/task/" + strconv.Itoa(a.thread))
	return a.thread != 0 && err == nil
}

func (a author) String() string {
	if a.name == "" {
		return "process " + strconv.Itoa(a.thread)
	}
	return "process " + a.name
}
