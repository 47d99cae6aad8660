package snat

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/plan"
)

// watched counts what a Manager's Watch tells.
type watched struct{ tables, accepts chan struct{} }

func watch(t *testing.T, ns *namespace, m *Manager) watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := watched{make(chan struct{}, 100), make(chan struct{}, 100)}
	ended := make(chan error, 1)
	go ns.Do(func() {
		ended <- m.Watch(ctx, func() { w.tables <- struct{}{} }, func() { w.accepts <- struct{}{} })
	})
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Watch ended with %v", err)
		}
	})
	<-w.tables // it sees changes from now on
	<-w.accepts
	return w
}

// told waits until something was told, and returns what else was.
func told(t *testing.T, what string, want, other chan struct{}) {
	t.Helper()
	select {
	case <-want:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s was not told", what)
	}
	if len(other) > 0 {
		t.Errorf("%s was told as the other thing, too", what)
		<-other
	}
}

// TestWatch: what others do to our tables is told, with who did it; our own
// writes and what is not ours are not.
func TestWatch(t *testing.T) {
	runtime.LockOSThread() // who wrote is told by its thread, which must outlive what it wrote
	defer runtime.UnlockOSThread()
	ns := newNamespace(t)
	m, err := New(Options{NetNS: ns.FD(), Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Owned() {
		t.Fatal("a shared table is owned")
	}
	ports := []BridgePort{{Bridge: "b", Name: "p", MAC: "02:00:00:00:00:01"}}
	both := func(want bool) {
		t.Helper()
		apply(t, m, sample(), true, want)
		changed, err := m.ApplyBridge(t.Context(), ports, true)
		if err != nil || changed != want {
			t.Fatalf("ApplyBridge wrote: %v, %v; want %v", changed, err, want)
		}
	}
	both(true)
	ns.run(t, "iptables -N DOCKER-USER", "iptables -A FORWARD -j DOCKER-USER", "nft add table ip other")
	w := watch(t, ns, m)
	if m.Culprit() != "" {
		t.Errorf("culprit %q before anybody did anything", m.Culprit())
	}
	fw := sample()
	fw.Sources = nil
	apply(t, m, fw, true, true)
	apply(t, m, sample(), true, true)
	ns.run(t, "nft add table ip other2", "nft delete table ip other2", "iptables -t nat -A POSTROUTING -j MASQUERADE", "iptables -t nat -F")
	for _, line := range []string{
		"nft flush ruleset", "nft delete table inet eipnet", "nft delete table bridge eipnet",
		"nft flush map inet eipnet pin4", "nft flush chain inet eipnet mark-pre", "nft add element inet eipnet locked { docker9 }",
	} {
		ns.run(t, line)
		told(t, line, w.tables, nil)
		if got := m.Culprit(); got != "process nft" {
			t.Errorf("after %s the culprit is %q", line, got)
		}
		changed, err := m.Apply(t.Context(), sample(), true)
		if err != nil {
			t.Fatal(err)
		}
		changedBridge, err := m.ApplyBridge(t.Context(), ports, true)
		if err != nil {
			t.Fatal(err)
		}
		if !changed && !changedBridge {
			t.Errorf("after %s nothing was written", line)
		}
		both(false)
		holds(t, ns, sample())
		for len(w.accepts) > 0 {
			<-w.accepts
		}
	}
	if wrote := strings.Join(m.Wrote(), ","); !strings.Contains(wrote, "table inet eipnet") || !strings.Contains(wrote, "table bridge eipnet") {
		t.Errorf("wrote %s", wrote)
	}
	if wrote := m.Wrote(); len(wrote) > 0 {
		t.Errorf("told again: %v", wrote)
	}
	ns.run(t, "iptables -N DOCKER-USER")
	for _, line := range []string{"iptables -A DOCKER-USER -j RETURN", "iptables -F DOCKER-USER", "iptables -F FORWARD", "iptables -P FORWARD DROP", "iptables -N EIPNET-FORWARD", "iptables -X EIPNET-FORWARD"} {
		for len(w.accepts) > 0 {
			<-w.accepts
		}
		ns.run(t, line)
		told(t, line, w.accepts, w.tables)
	}
}

// TestShareAfterOwning: a table that another start owned is taken over without owning it.
func TestShareAfterOwning(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	if !m.Owned() {
		t.Skip("this kernel has no persistent table ownership")
	}
	apply(t, m, sample(), true, true)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{NetNS: ns.FD(), Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, m, sample(), true, false)
	apply(t, m, plan.Firewall{Mask: sample().Mask}, true, true)
	ns.run(t, "nft delete table inet eipnet")
	apply(t, m, sample(), true, true)
	holds(t, ns, sample())
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = newManager(t, ns)
	apply(t, m, sample(), true, false)
	if !m.Owned() {
		t.Error("a shared table cannot be owned again")
	}
}
