package api_test

import (
	"context"
	"errors"
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
	"github.com/eipnet/eipnet/internal/model"
)

// ledger are host entries in memory.
type ledger struct{ entries []model.HostEntry }

func (l *ledger) List() []model.HostEntry { return l.entries }

func (l *ledger) Add(_ context.Context, e model.HostEntry) error {
	if e.Name == "bad" {
		return errors.New("no such NIC")
	}
	l.entries = append(l.entries, e)
	return nil
}

func (l *ledger) Remove(_ context.Context, name string) error {
	if len(l.entries) == 0 || l.entries[0].Name != name {
		return errors.New("there is no such host entry")
	}
	l.entries = nil
	return nil
}

func TestHostsOverTheSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as the caller of the API does")
	}
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	api.HandleHosts(mux, &ledger{})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second, ConnContext: api.ConnContext}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	c := api.NewClient(path)
	if list, err := c.Hosts(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("at first: %v, %v", list, err)
	}
	web := model.HostEntry{Name: "web", Bridge: "br-web", Address: netip.MustParseAddr("172.19.0.100"), Options: map[string]string{"eip.nic": "eth1"}}
	if err := c.AddHost(t.Context(), web); err != nil {
		t.Error(err)
	}
	if err := c.AddHost(t.Context(), model.HostEntry{Name: "bad"}); err == nil || err.Error() != "no such NIC" {
		t.Errorf("a refusal reads %v", err)
	}
	if list, err := c.Hosts(t.Context()); err != nil || len(list) != 1 || !list[0].Same(web) {
		t.Errorf("added: %+v, %v", list, err)
	}
	if err := c.RemoveHost(t.Context(), "no/body"); err == nil || err.Error() != "there is no such host entry" {
		t.Errorf("a refusal reads %v", err)
	}
	if err := c.RemoveHost(t.Context(), "web"); err != nil {
		t.Error(err)
	}
}

func TestOnlyRootChangesHosts(t *testing.T) {
	l := &ledger{entries: []model.HostEntry{{Name: "web"}}}
	mux := http.NewServeMux()
	api.HandleHosts(mux, l)
	for method, path := range map[string]string{http.MethodPost: "/v1/hosts", http.MethodDelete: "/v1/hosts/web"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(`{"name": "other"}`)))
		if w.Code != http.StatusForbidden || len(l.entries) != 1 {
			t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
}
