package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/eipnet/eipnet/internal/model"
)

// Programs keeps endpoints of programs of the host: see package programs.
type Programs interface {
	Attach(ctx context.Context, p model.Program) (model.Attachment, error)
	Resume(id string) error
	Release(stopping context.Context, id string)
	Remove(ctx context.Context, id string) error
}

// HandlePrograms adds what `eipnet exec` asks, for root only:
//
//	POST /v1/programs              make an endpoint; answered with its attachment
//	POST /v1/programs/{id}/hold    hold one that is there
//	DELETE /v1/programs/{id}       remove it
//
// The answers to the first two do not end: the endpoint lives as long as the
// connection does. stopping is done when the daemon ends, which ends
// connections, too, and no program.
func HandlePrograms(stopping context.Context, mux *http.ServeMux, programs Programs) {
	hold := func(w http.ResponseWriter, r *http.Request, id string, first any) {
		defer programs.Release(stopping, id)
		answer(w, http.StatusOK, first)
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
		case <-stopping.Done():
		}
	}
	mux.HandleFunc("POST /v1/programs", rootOnly(func(w http.ResponseWriter, r *http.Request) {
		var p model.Program
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxProgram)).Decode(&p); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": "reading the request: " + err.Error()})
			return
		}
		a, err := programs.Attach(r.Context(), p)
		if err != nil {
			answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
			return
		}
		hold(w, r, a.ID, a)
	}))
	mux.HandleFunc("POST /v1/programs/{id}/hold", rootOnly(func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		if err := programs.Resume(id); err != nil {
			answer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
			return
		}
		hold(w, r, id, struct{}{})
	}))
	mux.HandleFunc("DELETE /v1/programs/{id}", rootOnly(func(w http.ResponseWriter, r *http.Request) {
		if err := programs.Remove(r.Context(), r.PathValue("id")); err != nil {
			answer(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, struct{}{})
	}))
}

const maxProgram = 64 << 10

// ErrNoProgram says that the daemon knows no such endpoint.
var ErrNoProgram = errors.New("the daemon does not know this program")

// Held is a connection that holds an endpoint.
type Held struct {
	model.Attachment
	resp *http.Response
}

// Lost waits until the daemon is gone.
func (h *Held) Lost() {
	var one [1]byte
	for {
		if _, err := h.resp.Body.Read(one[:]); err != nil {
			h.Close()
			return
		}
	}
}

// Close lets go of the endpoint.
func (h *Held) Close() { _ = h.resp.Body.Close() }

// Attach asks for an endpoint, and holds it.
func (c *Client) Attach(ctx context.Context, p model.Program) (*Held, error) {
	resp, err := c.send(ctx, http.MethodPost, "/v1/programs", p) //nolint:bodyclose // Held.Close does
	if err != nil {
		return nil, err
	}
	h := &Held{resp: resp}
	if err := json.NewDecoder(resp.Body).Decode(&h.Attachment); err != nil {
		h.Close()
		return nil, fmt.Errorf("reading the daemon's answer: %w", err)
	}
	return h, nil
}

// Hold holds an endpoint that is there.
func (c *Client) Hold(ctx context.Context, a model.Attachment) (*Held, error) {
	resp, err := c.send(ctx, http.MethodPost, "/v1/programs/"+a.ID+"/hold", nil) //nolint:bodyclose // Held.Close does
	if err != nil {
		return nil, err
	}
	return &Held{Attachment: a, resp: resp}, nil
}

// Detach removes an endpoint.
func (c *Client) Detach(ctx context.Context, id string) error {
	resp, err := c.send(ctx, http.MethodDelete, "/v1/programs/"+id, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
