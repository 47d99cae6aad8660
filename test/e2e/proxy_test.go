package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync/atomic"
)

// apiProxy stands between eipnet and Docker's API, and can be taken away.
type apiProxy struct {
	rig      *rig
	server   *http.Server
	requests atomic.Int64
	silent   atomic.Pointer[chan struct{}] // while there is one, nothing is answered until it is closed
}

// proxySocket is where eipnet finds the proxy, on the host.
const proxySocket = "/run/eipnet-docker.sock"

// proxied prepares a rig whose eipnet reaches Docker through a proxy.
func (r *rig) proxied() *apiProxy {
	r.t.Helper()
	p := &apiProxy{rig: r}
	r.args = append(r.args, "--docker-host", "unix://"+proxySocket)
	if err := p.open(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { p.close() })
	return p
}

// open lets eipnet find Docker.
func (p *apiProxy) open() error {
	l, err := net.Listen("unix", p.rig.Host.Path(proxySocket))
	if err != nil {
		return err
	}
	docker := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	docker.FlushInterval = -1                    // events
	docker.ErrorLog = log.New(io.Discard, "", 0) // cut connections are what it is for
	docker.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.rig.Host.Path("/run/docker.sock"))
	}}
	p.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		p.requests.Add(1)
		if wait := p.silent.Load(); wait != nil {
			select {
			case <-*wait:
			case <-req.Context().Done():
				return
			}
		}
		docker.ServeHTTP(w, req)
	})}
	server := p.server
	go func() { _ = server.Serve(l) }() // until it is closed
	return nil
}

// close takes the socket away and cuts whatever goes through it.
func (p *apiProxy) close() {
	if err := errors.Join(p.server.Close(), os.RemoveAll(p.rig.Host.Path(proxySocket))); err != nil {
		p.rig.t.Error(fmt.Errorf("closing the proxy: %w", err))
	}
}

// hush has the proxy accept and not answer, as Docker does while it starts; the returned function ends it.
func (p *apiProxy) hush() (speak func()) {
	wait := make(chan struct{})
	p.silent.Store(&wait)
	return func() {
		p.silent.Store(nil)
		close(wait)
	}
}
