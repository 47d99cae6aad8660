package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

// TestFailover: a NIC loses its link, or its gateway dies; what has a fallback
// goes there, its published port along, and comes back; what holds, holds; and
// nobody else notices.
func TestFailover(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.ThreeSubnets, RPFilter: "2"}, "--probe", lab.SiteAddr.String()+":80")
	r.createNetwork()
	r.run(t, "web", "--label", "eip.nic=eth1", "--label", "eip.fallback=eth2", "-p", "8090:8080")
	r.run(t, "holds", "--label", "eip.nic=eth1")
	r.run(t, "host", "--label", "eip.nic=eth1", "--label", "eip.fallback=host")
	r.run(t, "other", "--label", "eip.nic=eth2", "-p", "8081:8081")
	r.start(t, "stock", "--label", "eip.nic=eth1", "--label", "eip.fallback=eth2,host")
	all := []string{"web", "holds", "host", "stock"}
	home := func(t *testing.T) {
		t.Helper()
		for _, name := range all {
			r.leaves(t, name, r.EIP("eth1").String())
		}
		r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
		r.in(t).well()
	}
	home(t)
	others := openSession(t, "into other", r.Site, fmt.Sprintf("%v:8081", r.EIP("eth2")))
	for _, loss := range []struct {
		name     string
		off, on  func() error
		within   time.Duration
		problems []string
	}{
		{"link", func() error { return r.SetCarrier("eth1", false) }, func() error { return r.SetCarrier("eth1", true) }, time.Second, []string{"failed over to eth2", "no carrier"}},
		{
			"gateway", func() error { return r.SetGateway(t.Context(), "eth1", false) }, func() error { return r.SetGateway(t.Context(), "eth1", true) },
			3 * time.Second,
			[]string{"failed over to eth2", "gateway"},
		},
	} {
		t.Run(loss.name, func(t *testing.T) {
			home(t)
			r.resetSniffers()
			if err := loss.off(); err != nil {
				t.Fatal(err)
			}
			took := r.until(t, "web", r.EIP("eth2").String())
			t.Logf("web left by its fallback %v after the loss (target %v)", took.Round(time.Millisecond), loss.within)
			if took > 10*loss.within {
				t.Errorf("web took %v, want %v", took, loss.within)
			}
			r.leaves(t, "stock", r.EIP("eth2").String())
			r.leaves(t, "host", r.EIP("eth0").String())
			r.held(t, "holds")
			r.answers(r.url("eth2", 8090), r.EIP("eth2").String())
			r.problem("web", loss.problems...)
			if said, _ := r.Host.Run(t.Context(), "eipnet", "status"); !strings.Contains(said, "eth2 (for eth1)") {
				t.Errorf("status does not tell:\n%s", said)
			}
			// A daemon that starts now does not take it for healthy.
			r.kill()
			r.serve()
			for range 5 {
				if got, err := r.exec("web", "get", siteIP); err != nil || got != r.EIP("eth2").String() {
					t.Errorf("after the daemon's restart web left as %q, %v", got, err)
				}
			}
			others.goesOn(t)
			r.clean()
			if err := loss.on(); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			r.leaves(t, "web", r.EIP("eth1").String())
			t.Logf("web was back %v after the NIC", time.Since(begin).Round(time.Millisecond))
			home(t)
			others.goesOn(t)
			r.clean()
		})
	}
}

// until asks from inside a container, impatiently, until it leaves as wanted,
// and tells how long that took.
func (r *rig) until(t *testing.T, name, want string) time.Duration {
	t.Helper()
	begin := time.Now()
	// A question by a way that is dead takes long: several are asked side by side.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answered := make(chan time.Time, 1)
	tick := time.NewTicker(300 * time.Millisecond) // many at once would fill the machine
	defer tick.Stop()
	for {
		go func() {
			if got, err := r.Docker(ctx, "exec", name, "/app", "get", siteIP); err == nil && strings.TrimSpace(got) == want {
				select {
				case answered <- time.Now():
				default:
				}
			}
		}()
		select {
		case at := <-answered:
			return at.Sub(begin)
		case <-ctx.Done():
			t.Fatal(errors.Join(fmt.Errorf("%s never left as %s", name, want), ctx.Err()))
		case <-tick.C:
		}
	}
}
