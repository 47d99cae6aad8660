package reconcile_test

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// meddledFirewall and meddledHost have somebody do something once, behind the
// firewall's transaction and behind the look at conntrack.
type (
	meddledFirewall struct {
		firewallPart
		once func()
	}
	meddledHost struct {
		hostPart
		once func()
	}
)

func (m *meddledFirewall) ApplyBridge(ctx context.Context, ports []plan.BridgePort, prune bool) (bool, error) {
	if fn := m.once; fn != nil {
		m.once = nil
		fn()
	}
	return m.firewallPart.ApplyBridge(ctx, ports, prune)
}

func (m *meddledHost) FlushTranslated(ctx context.Context, stale func(from, to, as netip.Addr) bool) (int, error) {
	n, err := m.hostPart.FlushTranslated(ctx, stale)
	if fn := m.once; fn != nil {
		m.once = nil
		fn()
	}
	return n, err
}

// TestTablesGoneDuringAPass: what begins after the pass that was told has looked,
// and before the next one mends the tables, is forgotten, too.
func TestTablesGoneDuringAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.endpoint("a", true) // pinned to eth0
		o := options(w)
		firewall, host := &meddledFirewall{firewallPart: firewallPart{w}}, &meddledHost{hostPart: hostPart{w}}
		o.Firewall, o.Host = firewall, host
		l := startLoop(t, w, o)
		wrong := [3]netip.Addr{netip.MustParseAddr("172.19.0.100"), netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("172.31.0.14")}
		firewall.once = func() {
			w.do(func() { w.firewall = plan.Firewall{} })
			l.PokeTables()
		}
		host.once = func() { w.do(func() { w.flows = append(w.flows, wrong) }) }
		w.do(func() { w.firewall = plan.Firewall{} }) // this pass has something to write
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		wait(2 * reconcile.MinInterval)
		synctest.Wait()
		w.do(func() {
			if host.once != nil || len(w.firewall.Sources) == 0 {
				t.Error("nobody looked at conntrack, or the table was not mended")
			}
			if len(w.flows) > 0 {
				t.Errorf("flows left: %v", w.flows)
			}
		})
	})
}
