package api_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
)

// books are programs that tell what is asked of them.
type books struct{ events chan string }

func (b books) Attach(_ context.Context, p model.Program) (model.Attachment, error) {
	if p.Name == "bad" {
		return model.Attachment{}, errors.New("no such NIC")
	}
	b.events <- "attached " + p.Name
	return model.Attachment{ID: p.Name, Link: "eipc0"}, nil
}

func (b books) Resume(id string) error {
	if id != "web" {
		return errors.New("there is none")
	}
	b.events <- "resumed " + id
	return nil
}

func (b books) Release(stopping context.Context, id string) {
	if stopping.Err() != nil {
		id += " for the next daemon"
	}
	b.events <- "released " + id
}

func (b books) Remove(_ context.Context, id string) error {
	b.events <- "removed " + id
	return nil
}

func (b books) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-b.events:
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("waiting for: %s", want)
	}
}

// An endpoint is held by the connection over which it was asked for.
func TestProgramsOverTheSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as the caller of the API does")
	}
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := books{make(chan string, 10)}
	stopping, stop := context.WithCancel(t.Context())
	mux := api.Handler(noStatus, nil)
	api.HandlePrograms(stopping, mux, b)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second, ConnContext: api.ConnContext}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()

	c := api.NewClient(path)
	if _, err := c.Attach(t.Context(), model.Program{Name: "bad"}); err == nil || err.Error() != "no such NIC" {
		t.Errorf("a refusal reads %v", err)
	}
	held, err := c.Attach(t.Context(), model.Program{Name: "web"})
	if err != nil || held.Link != "eipc0" {
		t.Fatalf("%+v, %v", held, err)
	}
	b.expect(t, "attached web")
	held.Close()
	b.expect(t, "released web")
	if _, err := c.Hold(t.Context(), model.Attachment{ID: "other"}); !errors.Is(err, api.ErrNoProgram) {
		t.Errorf("holding what is not there: %v", err)
	}
	if err := c.Detach(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	b.expect(t, "removed web")

	held, err = c.Hold(t.Context(), held.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	b.expect(t, "resumed web")
	lost := make(chan struct{})
	go func() { defer close(lost); held.Lost() }()
	stop()
	b.expect(t, "released web for the next daemon")
	select {
	case <-lost:
	case <-time.After(10 * time.Second):
		t.Error("the holder does not notice that the daemon has ended")
	}
}

func TestOnlyRootRunsPrograms(t *testing.T) {
	b := books{make(chan string, 10)}
	mux := http.NewServeMux()
	api.HandlePrograms(t.Context(), mux, b)
	for _, r := range []struct{ method, path string }{
		{http.MethodPost, "/v1/programs"}, {http.MethodPost, "/v1/programs/web/hold"}, {http.MethodDelete, "/v1/programs/web"},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), r.method, r.path, strings.NewReader("{}")))
		if w.Code != http.StatusForbidden || len(b.events) > 0 {
			t.Errorf("%s %s: %d %s", r.method, r.path, w.Code, w.Body)
		}
	}
}
