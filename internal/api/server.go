package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// StatusFunc gathers the status when somebody asks.
type StatusFunc func(ctx context.Context) (Status, error)

// Handler serves the API: GET /v1/status, and, for root only, POST /v1/rebind.
// [HandlePrograms] and [HandleHosts] add to it.
func Handler(status StatusFunc, rebind RebindFunc) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		s, err := status(ctx)
		if err != nil {
			answer(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, s)
	})
	mux.HandleFunc("POST /v1/rebind", rootOnly(handleRebind(rebind)))
	return mux
}

// Client reads a daemon's API.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon that listens at the socket path.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// ErrNotRunning says that nobody answers at the socket.
var ErrNotRunning = errors.New("the eipnet daemon is not running")

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// call asks the daemon and reads its answer.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("reading the daemon's answer: %w", err)
	}
	return nil
}

// send asks the daemon and returns a successful answer, whose body is the
// caller's to close. The error says what to do where the daemon does not run or
// the caller may not ask.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("asking %s: %w", c.socket, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://eipnet"+path, body)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", c.socket, err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (nobody listens at %s); start it with: sudo eipnet serve", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("not allowed to use %s; try again with sudo", c.socket)
	case err != nil:
		return nil, fmt.Errorf("asking %s: %w", c.socket, err)
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's answer: %w", err)
	}
	var e struct{ Error string }
	switch {
	case json.Unmarshal(said, &e) != nil || e.Error == "":
		return nil, fmt.Errorf("the daemon answered %s: %s", resp.Status, said)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%w: %s", ErrNoProgram, e.Error)
	}
	return nil, errors.New(e.Error)
}

const maxError = 64 << 10
