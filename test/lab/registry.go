package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// RegistryAddr is where ServeRegistry listens; Docker speaks plain HTTP to a registry on 127.0.0.0/8.
const RegistryAddr = "127.0.0.1:5000"

// registry keeps blobs and manifests in memory, under their digests and, manifests, under their tags: as
// much of the distribution protocol as docker push and pull need.
type registry struct {
	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string]manifest
	uploads   map[string][]byte
}

type manifest struct {
	kind string
	body []byte
}

// ServeRegistry runs an empty image registry on the host, at RegistryAddr, until ctx ends.
func (l *Lab) ServeRegistry(ctx context.Context) error {
	r := &registry{blobs: map[string][]byte{}, manifests: map[string]manifest{}, uploads: map[string][]byte{}}
	var listener net.Listener
	if err := l.InHost(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", RegistryAddr)
		return err
	}); err != nil {
		return fmt.Errorf("serving a registry: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", r.serve)
	srv := &http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() { _ = srv.Serve(listener) }() // ends with ctx
	return nil
}

// serve answers /v2/NAME/{blobs,manifests}/REFERENCE; all repositories are one.
func (r *registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	path := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	ref := path[len(path)-1]
	body, err := io.ReadAll(req.Body)
	switch kind := path[max(0, len(path)-2)]; {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case req.URL.Path == "/v2/":
	case req.Method == http.MethodPost:
		id := strconv.Itoa(len(r.uploads))
		r.uploads[id] = nil
		accept(w, req.URL.Path+id)
	case kind == "uploads":
		r.upload(w, req, ref, body)
	case kind == "blobs":
		blob, ok := r.blobs[ref]
		give(w, req, ref, "application/octet-stream", blob, ok)
	case req.Method == http.MethodPut:
		m := manifest{req.Header.Get("Content-Type"), body}
		r.manifests[ref], r.manifests[digest(body)] = m, m
		created(w, digest(body))
	default:
		m, ok := r.manifests[ref]
		give(w, req, digest(m.body), m.kind, m.body, ok)
	}
}

// upload takes in a piece of a blob; PUT ends it.
func (r *registry) upload(w http.ResponseWriter, req *http.Request, id string, piece []byte) {
	r.uploads[id] = append(r.uploads[id], piece...)
	if req.Method != http.MethodPut {
		accept(w, req.URL.Path)
		return
	}
	d := digest(r.uploads[id])
	if d != req.URL.Query().Get("digest") {
		http.Error(w, "another digest", http.StatusBadRequest)
		return
	}
	r.blobs[d] = r.uploads[id]
	created(w, d)
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func accept(w http.ResponseWriter, location string) {
	w.Header().Set("Location", location)
	w.WriteHeader(http.StatusAccepted)
}

func created(w http.ResponseWriter, digest string) {
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
}

func give(w http.ResponseWriter, req *http.Request, digest, kind string, body []byte, ok bool) {
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that hangs up does without it
	}
}
