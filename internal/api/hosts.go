package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/eipnet/eipnet/internal/model"
)

// Hosts keeps host entries: see package hosts.
type Hosts interface {
	List() []model.HostEntry
	Add(ctx context.Context, e model.HostEntry) error
	Remove(ctx context.Context, name string) error
}

// HandleHosts adds what `eipnet host` asks:
//
//	GET /v1/hosts             the entries
//	POST /v1/hosts            make one, for root only
//	DELETE /v1/hosts/{name}   remove it, for root only
func HandleHosts(mux *http.ServeMux, hosts Hosts) {
	mux.HandleFunc("GET /v1/hosts", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, append([]model.HostEntry{}, hosts.List()...))
	})
	mux.HandleFunc("POST /v1/hosts", rootOnly(func(w http.ResponseWriter, r *http.Request) {
		var e model.HostEntry
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&e); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": "reading the request: " + err.Error()})
			return
		}
		done(w, hosts.Add(r.Context(), e))
	}))
	mux.HandleFunc("DELETE /v1/hosts/{name}", rootOnly(func(w http.ResponseWriter, r *http.Request) {
		done(w, hosts.Remove(r.Context(), r.PathValue("name")))
	}))
}

// done answers that something is done, or why not.
func done(w http.ResponseWriter, err error) {
	if err != nil {
		answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
		return
	}
	answer(w, http.StatusOK, struct{}{})
}

// Hosts lists the host entries.
func (c *Client) Hosts(ctx context.Context) ([]model.HostEntry, error) {
	var out []model.HostEntry
	err := c.call(ctx, http.MethodGet, "/v1/hosts", nil, &out)
	return out, err
}

// AddHost makes a host entry.
func (c *Client) AddHost(ctx context.Context, e model.HostEntry) error {
	return c.call(ctx, http.MethodPost, "/v1/hosts", e, &struct{}{})
}

// RemoveHost removes a host entry.
func (c *Client) RemoveHost(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/hosts/"+url.PathEscape(name), nil, &struct{}{})
}
