package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// after does what a container's start does not wait for: it forgets flows and
// runs iptables, both of which take long on a busy host.
func (l *Loop) after(ctx context.Context, res, before *Result) {
	if res.Err == nil {
		seen := res.Seen // by the pass: Docker may have answered since
		fw := res.Desired.Firewall
		res.partial(l.flushPublished(ctx, fw.Forwards, res.Host.Locals))
		// A change of the tables may be told when it is mended already, and one
		// that came while this pass was at work is mended by the next.
		told := l.undone.Swap(false)
		undone := (told || l.undoneBefore) && (res.table || before != nil && before.table)
		l.undoneBefore = told
		l.stale = l.stale || l.sources == nil || undone || res.complete && l.inherited != nil
		if seen && l.stale {
			err := l.flushStale(ctx, res)
			res.partial(err)
			if l.stale = err != nil; !l.stale && res.complete {
				l.inherited = nil
			}
		}
		if seen {
			err := l.flushMoved(ctx, fw, res.Endpoints)
			res.partial(err)
			if err == nil && !l.stale {
				l.release(res.Desired.Pins)
			}
		}
		// As long as we may not know all of our bridges, none loses its accepts.
		if len(fw.Ours) > 0 || res.complete {
			changed, err := l.forward(ctx, fw.Ours)
			res.Changed = res.Changed || changed
			res.partial(err)
		}
	}
	l.judge(res, before)
	l.finish(res)
}

// flushPublished forgets UDP flows to newly published ports that began before
// the port was ours: they would go on to where they went. TCP needs no help, as
// a connection cannot have begun before. What the first pass finds published
// was so before the daemon started. A port on all addresses is one on each of the
// host's: what goes through the host to others' port of that number is theirs.
func (l *Loop) flushPublished(ctx context.Context, forwards []plan.Forward, locals []netip.Addr) error {
	now := make(map[plan.Forward]bool)
	var fresh []netip.AddrPort
	for _, f := range forwards {
		if f.Proto != model.UDP {
			continue
		}
		now[f] = true
		if l.forwards == nil || l.forwards[f] {
			continue
		}
		if !f.Addr.IsUnspecified() {
			fresh = append(fresh, netip.AddrPortFrom(f.Addr, f.Port))
			continue
		}
		for _, a := range locals {
			if a.Is4() == f.Addr.Is4() {
				fresh = append(fresh, netip.AddrPortFrom(a, f.Port))
			}
		}
	}
	if len(fresh) > 0 {
		if _, err := l.o.Host.FlushConntrackPorts(ctx, fresh); err != nil {
			return fmt.Errorf("flushing UDP flows to published ports: %w", err)
		}
	}
	l.forwards = now
	return nil
}

// flushMoved forgets the flows of addresses that leave by another way than
// before, or have other exceptions: a flow keeps the source address that it began with. An address that
// is new on a network of ours had no flows that left. One that is held meanwhile,
// as its NIC is gone, keeps its flows if it then leaves as before. For what
// stands when Docker is first seen there is [Loop.flushStale].
func (l *Loop) flushMoved(ctx context.Context, fw plan.Firewall, endpoints []model.Endpoint) error {
	now := make(map[netip.Addr]plan.Source, len(fw.Sources))
	except := make(map[netip.Addr][]netip.Prefix)
	for _, e := range fw.ExceptBy {
		except[e.Source] = append(except[e.Source], e.To)
	}
	var moved []netip.Addr
	for _, s := range fw.Sources {
		if s.Verdict == plan.Blocked {
			continue
		}
		now[s.Addr] = s
		before, known := l.sources[s.Addr]
		if !known && !s.Stock {
			before, known = l.held[s.Addr]
		}
		if l.sources == nil || before == s && slices.Equal(l.except[s.Addr], except[s.Addr]) {
			continue
		}
		if known && before.Verdict != plan.Pending || !known && s.Stock {
			moved = append(moved, s.Addr)
		}
	}
	held := make(map[netip.Addr]plan.Source)
	for _, e := range endpoints {
		for _, f := range model.Families {
			addr, ok := e.Addr(f)
			if _, still := now[addr]; !ok || still {
				continue
			}
			if l.sources == nil {
				held[addr] = plan.Source{Addr: addr} // nobody remembers how it left
			} else if s, left := l.sources[addr]; left && s.Verdict != plan.Pending {
				held[addr] = s
			} else if s, left := l.held[addr]; left {
				held[addr] = s
			}
		}
	}
	for addr, s := range l.sources {
		if _, still := now[addr]; !still && s.Stock && s.Verdict != plan.Pending {
			moved = append(moved, addr) // the driver flushes its own
		}
	}
	if len(moved) > 0 {
		if _, err := l.o.Host.FlushConntrack(ctx, moved); err != nil {
			return fmt.Errorf("flushing the flows of moved pins: %w", err)
		}
	}
	l.sources, l.held, l.except = now, held, except
	return nil
}

// leaving are the endpoints whose connections may bear a NIC's address. At the
// start they are those of the addresses that an earlier process had pinned.
func (l *Loop) leaving(endpoints []model.Endpoint, seen bool) map[string]bool {
	if seen && l.pinned == nil {
		l.pinned = make(map[string]bool)
		for _, e := range endpoints {
			if l.inherited[e.Addr4] || l.inherited[e.Addr6] {
				l.pinned[e.ID] = true
			}
		}
	}
	return l.pinned
}

// release lets endpoints follow the host's routing whose connections are
// forgotten now, and remembers those that are pinned. One that is held leaves
// its connections as they are.
func (l *Loop) release(pins []plan.Pin) {
	now := make(map[string]bool)
	for _, p := range pins {
		switch {
		case p.State == plan.StatePinned, p.State == plan.StateBlocked && l.pinned[p.Endpoint]:
			now[p.Endpoint] = true
		case p.State == plan.StatePending && l.pinned[p.Endpoint]:
			l.Hurry()
		}
	}
	l.pinned = now
}

func applyProblem(err error) model.Problem {
	return model.Problem{Code: model.CodeApply, Severity: model.Failure, Subject: "host", Text: err.Error()}
}

// finish sorts, times and logs: a line when something changed, and one when a
// problem comes or goes, never one per pass.
func (l *Loop) finish(res *Result) {
	for _, err := range append(leaves(res.Err), res.Partial...) {
		res.Problems = append(res.Problems, applyProblem(err))
	}
	res.Problems = append(res.Problems, l.o.Docker.Problems()...)
	slices.SortFunc(res.Problems, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text))
	})
	res.Problems = slices.Compact(res.Problems)
	if res.Changed {
		l.o.Log.Info("host changed", slog.Int("networks", len(res.Networks)), slog.Int("endpoints", len(res.Endpoints)),
			slog.Any("managed", res.Desired.Links.Grouped), slog.Duration("took", res.Took))
	}
	now := make(map[model.Problem]bool)
	early := time.Now().Before(l.patience)
	for _, p := range res.Problems {
		if early && p.Code == model.CodeDockerAway {
			continue // status has it all the same
		}
		now[p] = true
		if !l.problems[p] {
			level := slog.LevelWarn
			if p.Severity == model.Failure {
				level = slog.LevelError
			}
			l.o.Log.Log(context.Background(), level, "problem", slog.String("code", string(p.Code)), slog.String("subject", p.Subject), slog.String("text", p.Text), slog.String("fix", p.Fix))
		}
	}
	for p := range l.problems {
		if !now[p] {
			l.o.Log.Info("problem solved", slog.String("code", string(p.Code)), slog.String("subject", p.Subject))
		}
	}
	l.problems = now
}
