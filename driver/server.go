package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	contentType = "application/vnd.docker.plugins.v1.2+json"
	maxBody     = 1 << 20 // about 10,000 published ports
)

// Handler returns the driver's protocol, on a mux of its own.
func (d *Driver) Handler() http.Handler {
	mux := http.NewServeMux()

	// These carry nothing that is used: Docker sends the first two with an empty body.
	mux.HandleFunc("POST /Plugin.Activate", static(activateResponse{Implements: []string{"NetworkDriver"}}))
	mux.HandleFunc("POST /NetworkDriver.GetCapabilities", static(capabilitiesResponse{Scope: "local", ConnectivityScope: "local"}))
	// Asked only by those who did not look at the capabilities: a bridge of ours
	// always has its gateway's address, so there is none that Docker may give away.
	mux.HandleFunc("POST /NetworkDriver.GwAllocCheck", static(gwAllocCheckResponse{}))
	for _, name := range []string{"DiscoverNew", "DiscoverDelete", "AllocateNetwork", "FreeNetwork"} {
		mux.HandleFunc("POST /NetworkDriver."+name, static(struct{}{}))
	}

	handle(d, mux, "CreateNetwork", d.createNetwork)
	handle(d, mux, "DeleteNetwork", d.deleteNetwork)
	handle(d, mux, "CreateEndpoint", d.createEndpoint)
	handle(d, mux, "DeleteEndpoint", d.deleteEndpoint)
	handle(d, mux, "EndpointOperInfo", d.endpointOperInfo)
	handle(d, mux, "Join", d.join)
	handle(d, mux, "Leave", d.leave)
	handle(d, mux, "ProgramExternalConnectivity", d.programExternalConnectivity)
	handle(d, mux, "RevokeExternalConnectivity", d.revokeExternalConnectivity)

	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusNotFound, errorResponse{Err: fmt.Sprintf("eipnet does not implement %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

func static(answer any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, answer) }
}

// request is what every request type knows: whether it names what it is about.
type request interface{ validate() error }

// handle serves one call of the protocol.
//
// The work runs on when Docker hangs up, so that nothing is left half done; the
// answer is given within answerTimeout even if the work hangs.
func handle[Req request, Resp any](d *Driver, mux *http.ServeMux, name string, fn func(context.Context, Req) (Resp, error)) {
	mux.HandleFunc("POST /NetworkDriver."+name, func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		req, err := decodeRequest[Req](w, r)
		if err != nil {
			d.log.Warn("refused a call", slog.String("call", name), slog.Any("err", err))
			reply(w, http.StatusBadRequest, errorResponse{Err: err.Error()})
			return
		}

		ctx := context.WithoutCancel(r.Context())
		answered, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()

		type result struct {
			resp Resp
			err  error
		}
		done := make(chan result, 1)
		go func() {
			var res result
			defer func() {
				if p := recover(); p != nil {
					d.log.Error("panic in a call", slog.String("call", name), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
					res.err = fmt.Errorf("internal error: %v", p)
				}
				done <- res
			}()
			work, cancel := context.WithTimeout(ctx, workTimeout)
			defer cancel()
			res.resp, res.err = fn(work, req)
		}()

		var res result
		select {
		case res = <-done:
		case <-answered.Done():
			res.err = fmt.Errorf("no result within %v", answerTimeout)
		}
		d.log.Debug("call", slog.String("call", name), slog.Duration("duration", time.Since(start)), slog.Bool("ok", res.err == nil))
		if res.err != nil {
			d.log.Warn("refused a call", slog.String("call", name), slog.Any("err", res.err))
			reply(w, http.StatusInternalServerError, errorResponse{Err: res.err.Error()})
			return
		}
		reply(w, http.StatusOK, res.resp)
	})
}

// decodeRequest reads the one JSON object that a request's body has to be. An
// empty body is an error: that is what Docker's retry sends after a connection
// broke, the body having been used up by the first attempt.
func decodeRequest[Req request](w http.ResponseWriter, r *http.Request) (Req, error) {
	// A deadline for this body alone: a read timeout of the server's would also
	// close idle connections under a Docker that is about to use them. Where
	// the writer knows no deadlines (in tests) there is none.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(readTimeout))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	return decode[Req](http.MaxBytesReader(w, r.Body, maxBody))
}

// errEmpty is what a person reads when a container could not be started.
var errEmpty = errors.New("it is empty, as Docker repeated it: eipnet was away when it was sent first; start the container again")

func decode[Req request](body io.Reader) (Req, error) {
	var req, none Req
	dec := json.NewDecoder(body)
	if err := dec.Decode(&req); err != nil {
		if errors.Is(err, io.EOF) {
			err = errEmpty
		}
		return none, fmt.Errorf("reading the request: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return none, errors.New("reading the request: there is something behind the JSON object")
	}
	if err := req.validate(); err != nil {
		return none, fmt.Errorf("reading the request: %w", err)
	}
	return req, nil
}

func reply(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // fails only if Docker hung up, and nobody is left to be told
}

// Serve answers on all listeners until ctx ends, and returns when the calls that
// were under way then are answered. It closes the listeners.
func Serve(ctx context.Context, d *Driver, listeners ...net.Listener) error {
	srv := &http.Server{
		Handler:           d.Handler(),
		ReadHeaderTimeout: readTimeout,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving the driver on %v: %w", l.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			return errors.Join(fmt.Errorf("waiting for running driver calls: %w", err), srv.Close())
		}
		return nil
	})
	return group.Wait()
}

// Listen opens the unix socket at path for root alone and makes the folder that
// it is in. A socket that nobody answers on is replaced; anything else that is
// in the way is an error. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of socket %s: %w", path, err)
	}
	l, err := listen(path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if info, statErr := os.Lstat(path); statErr == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listening on %s: it exists and is no socket", path)
	}
	conn, dialErr := net.DialTimeout("unix", path, time.Second)
	if dialErr == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listening on %s: another process answers there", path)
	}
	if !errors.Is(dialErr, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("listening on %s: it exists, and asking who listens there failed: %w", path, dialErr)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the stale socket %s: %w", path, err)
	}
	return listen(path)
}

// listen binds a socket that has its mode from the beginning: on Linux a unix
// socket's file inherits the mode that the descriptor had before bind.
func listen(path string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		if err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmodErr
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}
