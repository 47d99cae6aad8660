package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/model"
)

// FlushConntrack forgets the connections whose original source, or whose
// replies' source, is one of the addresses, and returns how many there were.
// It reads the whole table once per family: keep it off hot paths.
func (h *Host) FlushConntrack(ctx context.Context, addrs []netip.Addr) (int, error) {
	match := sourceFilter(make(map[netip.Addr]bool))
	families := make(map[model.Family]bool)
	for _, a := range addrs {
		a = a.Unmap()
		match[a], families[model.FamilyOf(a)] = true, true
	}
	return h.flush(ctx, families, match)
}

// FlushConntrackPorts forgets the UDP connections that were opened to one of
// these addresses and ports. It returns how many there were.
func (h *Host) FlushConntrackPorts(ctx context.Context, dst []netip.AddrPort) (int, error) {
	match := udpFilter(make(map[netip.AddrPort]bool))
	families := make(map[model.Family]bool)
	for _, d := range dst {
		d = netip.AddrPortFrom(d.Addr().Unmap(), d.Port())
		match[d], families[model.FamilyOf(d.Addr())] = true, true
	}
	return h.flush(ctx, families, match)
}

// FlushTranslated forgets the connections for which stale is true, and returns
// how many there were. from and to are the original addresses, as is the source
// that the other side sees; it is from where that was not translated.
func (h *Host) FlushTranslated(ctx context.Context, stale func(from, to, as netip.Addr) bool) (int, error) {
	return h.flush(ctx, map[model.Family]bool{model.IPv4: true, model.IPv6: true}, translated(stale))
}

func (h *Host) flush(ctx context.Context, families map[model.Family]bool, match netlink.CustomConntrackFilter) (int, error) {
	var total int
	var errs []error
	for _, f := range model.Families {
		if !families[f] {
			continue
		}
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("flushing %v connections: %w", f, err))
			break
		}
		// An interrupted dump has deleted what it saw; the next one sees the rest.
		_, err := dump(func() (uint, error) {
			n, err := h.handle.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family(f)), match)
			total += int(n)
			return n, err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("flushing %v connections: %w", f, err))
		}
	}
	if total > 0 {
		crash.Point("connections")
		h.log.Info("connections flushed", slog.Int("count", total))
	}
	return total, errors.Join(errs...)
}

// sourceFilter matches by original or reply source.
type sourceFilter map[netip.Addr]bool

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (s sourceFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return s[addr(flow.Forward.SrcIP)] || s[addr(flow.Reverse.SrcIP)]
}

// translated matches by the original addresses and the source as the other side sees it.
type translated func(from, to, as netip.Addr) bool

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (t translated) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, as := addr(flow.Forward.SrcIP), addr(flow.Reverse.DstIP)
	return t(from, addr(flow.Forward.DstIP), as)
}

// udpFilter matches UDP by original destination.
type udpFilter map[netip.AddrPort]bool

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (u udpFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if model.Proto(flow.Forward.Protocol) != model.UDP {
		return false
	}
	return u[netip.AddrPortFrom(addr(flow.Forward.DstIP), flow.Forward.DstPort)]
}
