package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

func noStatus(context.Context) (api.Status, error) { return api.Status{}, errors.New("none") }

// serve listens on a socket in which everybody may write, as a careless administrator would have it.
func serve(t *testing.T, rebind api.RebindFunc) *api.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: api.Handler(noStatus, rebind), ReadHeaderTimeout: time.Second, ConnContext: api.ConnContext}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return api.NewClient(path)
}

func TestRebindOverTheSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as the caller of the API does")
	}
	refused := fmt.Errorf("%w: no such NIC", reconcile.ErrRefused)
	c := serve(t, func(_ context.Context, container string, options map[string]string) (reconcile.Rebound, error) {
		if options["eip.nic"] == "eth7" {
			return reconcile.Rebound{}, refused
		}
		return reconcile.Rebound{ContainerID: "c1", Name: container, After: []plan.Pin{
			{State: plan.StatePinned, NIC: options["eip.nic"], Addr4: netip.MustParseAddr("172.31.0.14")},
		}}, nil
	})
	got, err := c.Rebind(t.Context(), api.Rebind{Container: "web", Options: map[string]string{"eip.nic": "eth1"}})
	if err != nil || got.Container != "web" || len(got.After) != 1 || got.After[0].NIC != "eth1" || len(got.After[0].LeavesAs) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = c.Rebind(t.Context(), api.Rebind{Container: "web", Options: map[string]string{"eip.nic": "eth7"}})
	if err == nil || err.Error() != refused.Error() {
		t.Errorf("a refusal reads %v, want %v", err, refused)
	}
}

// TestOnlyRootRebinds: who may connect may read; to change something takes root.
func TestOnlyRootRebinds(t *testing.T) {
	h := api.Handler(noStatus, func(context.Context, string, map[string]string) (reconcile.Rebound, error) {
		t.Error("a stranger was served")
		return reconcile.Rebound{}, nil
	})
	ours, theirs := net.Pipe() // a connection that has no credentials
	defer ours.Close()
	defer theirs.Close()
	req := httptest.NewRequestWithContext(api.ConnContext(t.Context(), theirs), http.MethodPost, "/v1/rebind", strings.NewReader(`{"container":"web"}`))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "sudo") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
