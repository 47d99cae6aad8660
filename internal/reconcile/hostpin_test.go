package reconcile_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// TestHostNetwork: a container on the host's network is pinned as long as it has
// a cgroup, which is another one after a restart, and only where cgroups are of use.
func TestHostNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.docker = map[string]model.Container{}
		w.strays = []model.Stray{{Container: model.Container{Known: true, ID: "c1", Name: "web", Labels: map[string]string{"eip.nic": "eth0"}}, Mode: "host", Running: true}}
		o := options(w)
		o.Settings.Cgroups = true
		l, err := reconcile.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		defer func() { cancel(); <-done }()
		expect := func(when string, ids ...uint64) {
			t.Helper()
			l.Poke()
			time.Sleep(reconcile.MinInterval) //nolint:forbidigo // synctest's clock
			synctest.Wait()
			var want []plan.Group
			for _, id := range ids {
				want = append(want, plan.Group{Cgroup: model.Cgroup{ID: id, Level: 2}, NIC: w.ids["eth0"]})
			}
			if diff := cmp.Diff(want, w.firewall.Groups); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		expect("not seen yet")
		if w.firewall.Cgroups {
			t.Error("the chains are there without need")
		}
		for _, id := range []uint64{7, 8} {
			w.do(func() { w.groups = map[string]model.Cgroup{"c1": {ID: id, Level: 2}} })
			expect("started", id)
		}
		w.do(func() { w.strays = nil })
		expect("gone")
		if !w.firewall.Cgroups {
			t.Error("the chains are gone with the container, and its connections may not be")
		}
	})
}
