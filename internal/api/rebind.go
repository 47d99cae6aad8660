package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// RebindFunc moves a container: see [reconcile.Loop.Rebind].
type RebindFunc func(ctx context.Context, container string, options map[string]string) (reconcile.Rebound, error)

// Rebind is what POST /v1/rebind takes.
type Rebind struct {
	Container string            `json:"container"`         // name, or beginning of an id
	Options   map[string]string `json:"options,omitempty"` // eip.* entries; none: forget what was said
}

// Rebound is what POST /v1/rebind answers.
type Rebound struct {
	Container string `json:"container"`
	ID        string `json:"id"`
	Before    []Way  `json:"before"` // one for each endpoint
	After     []Way  `json:"after"`
}

// Way is how an endpoint leaves the host.
type Way struct {
	State    plan.State   `json:"state"`
	NIC      string       `json:"nic,omitempty"`
	LeavesAs []netip.Addr `json:"leaves_as,omitempty"`
	Public   netip.Addr   `json:"public,omitzero"`
	From     model.Level  `json:"from,omitempty"`
	Why      string       `json:"why,omitempty"`
}

func ways(pins []plan.Pin) []Way {
	out := make([]Way, 0, len(pins))
	for _, p := range pins {
		w := Way{State: p.State, NIC: p.NIC, Public: p.Public, From: p.From, Why: p.Why}
		for _, f := range model.Families {
			if a := p.Addr(f); a.IsValid() {
				w.LeavesAs = append(w.LeavesAs, a)
			}
		}
		out = append(out, w)
	}
	return out
}

const (
	rebindTimeout = 20 * time.Second // the conntrack table of a busy host is long
	maxRequest    = 64 << 10
)

func handleRebind(rebind RebindFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), rebindTimeout)
		defer cancel()
		var in Rebind
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&in); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": "reading the request: " + err.Error()})
			return
		}
		out, err := rebind(ctx, in.Container, in.Options)
		switch {
		case errors.Is(err, reconcile.ErrRefused):
			answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
		case err != nil:
			answer(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
		default:
			answer(w, http.StatusOK, Rebound{Container: out.Name, ID: out.ContainerID, Before: ways(out.Before), After: ways(out.After)})
		}
	}
}

type peerKey struct{}

// ConnContext remembers who is at the other end of a connection; a server of
// [Handler] has to have it as its ConnContext, or refuses all that writes.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *unix.Ucred
	if err := raw.Control(func(fd uintptr) { peer, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || peer == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer.Uid)
}

// rootOnly serves only who was root when it connected.
func rootOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if uid, known := r.Context().Value(peerKey{}).(uint32); !known || uid != 0 {
			answer(w, http.StatusForbidden, map[string]string{"error": "only root may change anything; try again with sudo"})
			return
		}
		next(w, r)
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

// Rebind moves a container, or, without options, undoes that.
func (c *Client) Rebind(ctx context.Context, in Rebind) (Rebound, error) {
	var out Rebound
	err := c.call(ctx, http.MethodPost, "/v1/rebind", in, &out)
	return out, err
}
