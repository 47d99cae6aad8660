package driver_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/driver/drivertest"
	"github.com/eipnet/eipnet/internal/model"
)

func program(name string, ports ...model.Publish) model.Program {
	return model.Program{Name: name, Options: map[string]string{model.KeyNIC: "eth1"}, Publishes: ports}
}

// nothing fails the test if the world has a network, endpoint or link.
func nothing(t *testing.T, w *drivertest.World) {
	t.Helper()
	if n, e := w.Store.Networks(), w.Store.Endpoints(); len(n)+len(e) > 0 {
		t.Errorf("there are networks %v and endpoints %v", n, e)
	}
}

func TestAttach(t *testing.T) {
	w := drivertest.New()
	d := driver.New(w.Options())
	web, err := d.Attach(t.Context(), program("web", model.Publish{Proto: model.TCP, HostPort: 8090, Port: 8080}))
	if err != nil {
		t.Fatal(err)
	}
	second, err := d.Attach(t.Context(), program("second"))
	if err != nil {
		t.Fatal(err)
	}
	if web.Addr != netip.MustParsePrefix("10.231.0.2/20") || web.Gateway != netip.MustParseAddr("10.231.0.1") || second.Addr == web.Addr {
		t.Errorf("attached with %+v and %+v", web, second)
	}
	for what, p := range map[string]model.Program{
		"in use":               program("web"),
		"no such NIC":          {Name: "a", Options: map[string]string{model.KeyNIC: "eth7"}},
		"unknown option":       {Name: "a", Options: map[string]string{"eip.x": "y"}},
		"already allocated":    program("a", model.Publish{Proto: model.TCP, HostPort: 8090, Port: 80}),
		"neither on this host": program("a", model.Publish{Proto: model.TCP, HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 81, Port: 80}),
	} {
		if a, err := d.Attach(t.Context(), p); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %+v, %v; want %q", p, a, err, what)
		}
	}
	if got := len(d.Attached()); got != 2 {
		t.Errorf("%d programs are attached, want 2: what was refused has left something", got)
	}
	// Docker's lists have none of them.
	if n := d.Sweep(t.Context(), func(string) bool { return false }, func(string) bool { return false }); n != 0 {
		t.Errorf("%d were swept as Docker does not know them", n)
	}
	for _, id := range []string{web.ID, second.ID, second.ID, "unknown"} {
		if err := d.Detach(t.Context(), id); err != nil {
			t.Errorf("detaching %s: %v", id, err)
		}
	}
	nothing(t, w)
}

// A program that joins a host entry has its NIC and its ports; one at a time.
func TestAttachAs(t *testing.T) {
	w := drivertest.New()
	port := model.Publish{Proto: model.TCP, HostPort: 8090, Port: 8090}
	w.Store.Hosts = []model.HostEntry{
		{Name: "web", Address: netip.MustParseAddr("10.7.0.9"), Options: map[string]string{model.KeyNIC: "eth1"}, Publishes: []model.Publish{port}},
		{Name: "gone", Leaving: true},
	}
	d := driver.New(w.Options())
	a, err := d.Attach(t.Context(), model.Program{Name: "server", As: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if e, _ := w.Store.Endpoint(a.ID); e.As != "web" || e.Options[model.KeyNIC] != "eth1" || !cmp.Equal(e.Publishes, []model.Publish{port}, compareAddrs) {
		t.Errorf("stored: %+v", e)
	}
	for what, p := range map[string]model.Program{
		"server has joined host entry web already": {Name: "second", As: "web"},
		"there is no host entry gone":              {Name: "second", As: "gone"},
		"in use by a host entry":                   program("web"),
	} {
		if _, err := d.Attach(t.Context(), p); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v, want %q", p, err, what)
		}
	}
	if err := d.Detach(t.Context(), a.ID); err != nil {
		t.Error(err)
	}
	nothing(t, w)
}

// What counts is where a host entry is now: it was rebound from a NIC that is gone.
func TestAttachAsRebound(t *testing.T) {
	w := drivertest.New()
	w.Store.Hosts = []model.HostEntry{{Name: "web", Address: netip.MustParseAddr("10.7.0.9"), Options: map[string]string{model.KeyNIC: "eth7"}}}
	d := driver.New(w.Options())
	if _, err := d.Attach(t.Context(), model.Program{Name: "server", As: "web"}); err == nil || !strings.Contains(err.Error(), "no such NIC") {
		t.Errorf("by a NIC that is not there: %v", err)
	}
	w.Store.SetRebind(model.Rebind{ContainerID: w.Store.Hosts[0].ID(), Options: map[string]string{model.KeyNIC: "eth1"}})
	if _, err := d.Attach(t.Context(), model.Program{Name: "server", As: "web"}); err != nil {
		t.Error(err)
	}
}

// Docker's own endpoints are not removed as programs.
func TestDetachForeign(t *testing.T) {
	w := drivertest.New()
	d := driver.New(w.Options())
	if err := w.Store.PutNetwork(model.Network{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Store.PutEndpoint(model.Endpoint{ID: "containers", NetworkID: "n"}); err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(t.Context(), "containers"); err == nil {
		t.Error("a container's endpoint was removed")
	}
	if _, still := w.Store.Endpoint("containers"); !still {
		t.Error("a container's endpoint is gone")
	}
}

func TestProgramsSubnet(t *testing.T) {
	routed := func(prefixes ...string) (out []netip.Prefix) {
		for _, p := range prefixes {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for name, tt := range map[string]struct {
		routed []netip.Prefix
		given  string
		want   string // zero: an error
	}{
		"free":                {nil, "", "10.231.0.0/20"},
		"a VPN":               {routed("10.0.0.0/8"), "", "172.30.240.0/20"},
		"a container network": {routed("10.231.4.0/24", "172.16.0.0/12"), "", "192.168.240.0/20"},
		"given":               {nil, "10.9.0.0/24", "10.9.0.0/24"},
		"given and taken":     {routed("10.9.0.0/16"), "10.9.0.0/24", ""},
		"none":                {routed("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := drivertest.New()
			w.Core.Observed.Routed = tt.routed
			o := w.Options()
			if tt.given != "" {
				o.Programs = netip.MustParsePrefix(tt.given)
			}
			a, err := driver.New(o).Attach(t.Context(), program("web"))
			if tt.want == "" {
				if err == nil || !strings.Contains(err.Error(), "--programs-subnet") {
					t.Errorf("got %v, %v", a, err)
				}
				nothing(t, w)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, a.Addr.Masked().String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Whether the host may forward is Docker's to decide first. It may be starting.
func TestAttachWithoutDocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drivertest.New()
		w.Labels.Set(false, false)
		d := driver.New(w.Options())
		if a, err := d.Attach(t.Context(), program("web")); err == nil || !strings.Contains(err.Error(), "docker does not answer") {
			t.Errorf("attached %+v, %v", a, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if a, err := d.Attach(ctx, program("web")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("attached %+v, %v", a, err)
		}
		nothing(t, w)
		time.AfterFunc(5*time.Second, func() { w.Labels.Set(true, false) })
		if _, err := d.Attach(t.Context(), program("web")); err != nil {
			t.Errorf("when Docker is there: %v", err)
		}
	})
}
