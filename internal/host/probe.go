package host

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
)

const (
	probeTimeout  = 3 * time.Second
	probeFirst    = 2 * time.Millisecond // between looks at the neighbour table, doubling
	probeSlowest  = 100 * time.Millisecond
	probeRetry    = time.Second // between probes, doubling
	probeRetryMax = 30 * time.Second
)

// probeKey is a question: is target there on the link? The answer holds as
// long as the link's address and subnet are the same.
type probeKey struct {
	index  int
	local  netip.Prefix
	target netip.Addr
}

// probes ask the network for neighbours, in the background and by the kernel's
// own neighbour resolution, and remember the answers.
type probes struct {
	handle *netlink.Handle
	log    *slog.Logger
	poke   func()

	mu      sync.Mutex
	running map[probeKey]*probe
	wg      sync.WaitGroup
	closed  bool
}

type probe struct {
	cancel   context.CancelFunc
	first    chan struct{} // closed after the first try
	answered bool          // guarded by probes.mu
}

func newProbes(h *netlink.Handle, log *slog.Logger, poke func()) *probes {
	return &probes{handle: h, log: log, poke: poke, running: make(map[probeKey]*probe)}
}

// ask starts probes for new keys, ends those that are asked for no more, waits
// for the first results of the new ones, and returns what is known.
func (p *probes) ask(ctx context.Context, keys map[probeKey]int, wait time.Duration) map[probeKey]bool {
	var fresh []*probe
	p.mu.Lock()
	for key, pr := range p.running {
		if _, still := keys[key]; !still {
			pr.cancel()
			delete(p.running, key)
		}
	}
	for key := range keys {
		if p.running[key] == nil && !p.closed {
			probeCtx, cancel := context.WithCancel(context.Background())
			pr := &probe{cancel: cancel, first: make(chan struct{})}
			p.running[key] = pr
			fresh = append(fresh, pr)
			p.wg.Go(func() { p.run(probeCtx, key, pr) })
		}
	}
	p.mu.Unlock()

	if len(fresh) > 0 {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		for _, pr := range fresh {
			select {
			case <-pr.first:
			case <-ctx.Done():
			}
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[probeKey]bool, len(keys))
	for key := range keys {
		pr := p.running[key]
		out[key] = pr != nil && pr.answered
	}
	return out
}

func (p *probes) run(ctx context.Context, key probeKey, pr *probe) {
	for n, retry := 0, probeRetry; ; n, retry = n+1, min(2*retry, probeRetryMax) {
		answered := p.try(ctx, key)
		p.mu.Lock()
		pr.answered = answered
		p.mu.Unlock()
		if n == 0 {
			close(pr.first)
		}
		if ctx.Err() != nil {
			return
		}
		if answered {
			p.log.Info("first address of the subnet answers as gateway", slog.String("gateway", key.target.String()), slog.Int("ifindex", key.index))
			p.poke()
			return
		}
		p.log.Debug("first address of the subnet does not answer", slog.String("gateway", key.target.String()), slog.Int("ifindex", key.index), slog.Duration("retry", retry))
		if !delay.For(ctx, retry) {
			return
		}
	}
}

// try has the kernel resolve the neighbour and looks whether it did.
func (p *probes) try(ctx context.Context, key probeKey) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	neigh := &netlink.Neigh{
		LinkIndex: key.index, IP: key.target.AsSlice(), Family: family(model.FamilyOf(key.target)),
		State: netlink.NUD_NONE, Flags: netlink.NTF_USE,
	}
	if err := p.handle.NeighSet(neigh); err != nil {
		p.log.Debug("neighbour not asked", slog.String("gateway", key.target.String()), slog.Any("err", err))
		return false
	}
	for wait := probeFirst; ; wait = min(2*wait, probeSlowest) {
		if !delay.For(ctx, wait) {
			return false
		}
		found, failed, err := p.look(key)
		if err != nil || failed {
			return false
		}
		if found {
			return true
		}
	}
}

func (p *probes) look(key probeKey) (found, failed bool, err error) {
	list, err := dump(func() ([]netlink.Neigh, error) {
		return p.handle.NeighList(key.index, family(model.FamilyOf(key.target)))
	})
	if err != nil {
		return false, false, err
	}
	for _, n := range list {
		if addr(n.IP) != key.target {
			continue
		}
		const known = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PERMANENT
		// An IPv6 neighbour says whether it is a router, an IPv4 one does not.
		router := key.target.Is4() || n.Flags&netlink.NTF_ROUTER != 0
		return n.State&known != 0 && router, n.State&netlink.NUD_FAILED != 0, nil
	}
	return false, false, nil
}

// close ends all probes and waits for them.
func (p *probes) close() {
	p.mu.Lock()
	p.closed = true
	for _, pr := range p.running {
		pr.cancel()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func family(f model.Family) int {
	if f == model.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
