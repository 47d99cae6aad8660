package firewalld

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake is a firewalld: zones by interface, now and after a reload.
type fake struct {
	mu        sync.Mutex
	up        bool
	all       []string
	now, kept map[string]string
	broken    error
	news      chan struct{}
}

func newFake() *fake {
	return &fake{up: true, all: []string{"public", trustedZone, dockerZone}, now: map[string]string{}, kept: map[string]string{}, news: make(chan struct{}, 1)}
}

func (f *fake) running(context.Context) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.up, nil
}

func (f *fake) names(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all, f.broken
}

func (f *fake) zoneOf(_ context.Context, iface string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now[iface], f.broken
}

func (f *fake) configured(_ context.Context, iface string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept[iface], nil
}

func (f *fake) add(_ context.Context, zone, iface string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.all, zone) || f.now[iface] != "" {
		return errors.New("refused")
	}
	f.now[iface] = zone
	return nil
}

func (f *fake) remove(_ context.Context, zone, iface string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now[iface] != zone {
		return errors.New("not there")
	}
	delete(f.now, iface)
	return nil
}

func (f *fake) changes() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.news
}

func (f *fake) close() {}

// change does something to firewalld, and has it tell so.
func (f *fake) change(fn func()) {
	f.mu.Lock()
	fn()
	f.mu.Unlock()
	f.news <- struct{}{}
}

func (f *fake) zones() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.now)
}

// keep runs a Keeper with a firewalld; want waits and compares its zones.
func keep(t *testing.T, fn func(f *fake, k *Keeper, want func(what string, zones map[string]string))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f, k := newFake(), New(Options{})
		k.connect = func(context.Context) (zones, error) { return f, nil }
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go func() { _ = k.Run(ctx) }()
		fn(f, k, func(what string, zones map[string]string) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(zones, f.zones()); diff != "" {
				t.Errorf("%s: zones (-want +got):\n%s", what, diff)
			}
		})
	})
}

func TestKeeper(t *testing.T) {
	keep(t, func(f *fake, k *Keeper, want func(string, map[string]string)) {
		f.change(func() { f.now["br-user"], f.kept["br-user"] = "work", "work" })
		want("nothing wanted", map[string]string{"br-user": "work"})
		k.Set([]string{"br1", "br2", "br-user"})
		want("two bridges in no zone", map[string]string{"br1": "docker", "br2": "docker", "br-user": "work"})
		f.change(func() { f.now = maps.Clone(f.kept) })
		want("after a reload", map[string]string{"br1": "docker", "br2": "docker", "br-user": "work"})
		k.Set([]string{"br2"})
		want("br1 is gone", map[string]string{"br2": "docker", "br-user": "work"})
		f.change(func() { f.kept["br2"] = "docker" }) // by firewall-cmd --permanent
		k.Set(nil)
		want("a bridge that somebody has configured", map[string]string{"br2": "docker", "br-user": "work"})
	})
}

// TestNextKeeper: a bridge that an earlier process put into a zone is taken out with its network.
func TestNextKeeper(t *testing.T) {
	keep(t, func(f *fake, k *Keeper, want func(string, map[string]string)) {
		f.change(func() { f.now["br1"] = "docker" })
		k.Set([]string{"br1"})
		want("it is there", map[string]string{"br1": "docker"})
		k.Set(nil)
		want("its network is gone", map[string]string{})
	})
}

// TestNoAnswer: D-Bus that does not let us in matters where firewalld filters alone.
func TestNoAnswer(t *testing.T) {
	for _, filters := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k := New(Options{Filters: func() bool { return filters }})
			k.connect = func(context.Context) (zones, error) { return nil, errors.New("denied") }
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _ = k.Run(ctx) }()
			synctest.Wait()
			if p := k.Problems(); len(p) > 0 {
				t.Errorf("problems without a bridge: %v", p)
			}
			k.Set([]string{"br1"})
			synctest.Wait()
			if p := k.Problems(); len(p) > 0 != filters {
				t.Errorf("firewalld filters: %v; problems %v", filters, p)
			}
			cancel()
			synctest.Wait()
		})
	}
}

func TestKeeperWithoutDockersZone(t *testing.T) {
	keep(t, func(f *fake, k *Keeper, want func(string, map[string]string)) {
		f.change(func() { f.all = []string{"public", trustedZone} })
		k.Set([]string{"br1"})
		want("docker's zone is not there", map[string]string{"br1": "trusted"})
	})
}

func TestKeeperFails(t *testing.T) {
	keep(t, func(f *fake, k *Keeper, want func(string, map[string]string)) {
		f.change(func() { f.up = false })
		k.Set([]string{"br1"})
		want("firewalld is away", map[string]string{})
		f.change(func() { f.up, f.broken = true, errors.New("still starting") })
		want("it answers with errors", map[string]string{})
		if p := k.Problems(); len(p) != 1 {
			t.Errorf("problems %v", p)
		}
		f.change(func() { f.broken = nil })
		want("it works", map[string]string{"br1": "docker"})
		if p := k.Problems(); len(p) != 0 {
			t.Errorf("problems %v", p)
		}
		f.mu.Lock()
		before := f.news
		f.news, f.now = make(chan struct{}, 1), map[string]string{}
		f.mu.Unlock()
		close(before) // D-Bus is restarted
		<-time.After(2 * retry)
		want("another bus", map[string]string{"br1": "docker"})
	})
}

func TestNoBus(t *testing.T) {
	path := t.TempDir() + "/system_bus_socket"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".deaf"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if z, err := connect(t.Context(), path+".deaf"); z != nil || err != nil {
		t.Errorf("connected to a socket that nobody listens at: %v, %v", z, err)
	}
	if z, err := connect(t.Context(), path); z != nil || err != nil {
		t.Errorf("connected to nothing: %v, %v", z, err)
	}
	if err := Forget(t.Context(), path, []string{"br1"}); err != nil {
		t.Error(err)
	}
}
