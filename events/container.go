package events

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// Errors of [Watcher.Container], beside [ErrUntrusted].
var (
	// ErrUnknown: Docker answered, and knows no such endpoint or no container for it.
	ErrUnknown = errors.New("docker knows no container of this endpoint")
	// ErrDown: Docker was not asked, as it would not answer.
	ErrDown = errors.New("docker's events are not being followed")
)

// joinPrefix and the endpoint's id are its key in a network as long as it is
// not in a sandbox: during Join on every engine, later on from 29 on.
const joinPrefix = "ep-"

func joining(key string) bool { return strings.HasPrefix(key, joinPrefix) }

// Container finds the container of an endpoint, while its Join is being
// answered or later. It takes 1 to 5 ms, a second at most, and not longer than
// ctx; ErrDown comes at once. Where there are eip.* labels, the image is asked
// about too; if it cannot be read, that is ErrUntrusted. It never asks about a container by id, which
// Docker answers only after the start.
func (w *Watcher) Container(ctx context.Context, networkID, endpointID string) (model.Container, error) {
	eng := w.connected()
	if eng == nil {
		return model.Container{}, ErrDown
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lookupTimeout, fmt.Errorf("no answer within %v", lookupTimeout))
	defer cancel()
	c, err := w.lookup(ctx, eng, networkID, endpointID)
	switch {
	case errors.Is(err, errGone) && !errors.Is(err, ErrUntrusted):
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if err != nil {
		w.owe(networkID)
		return model.Container{}, fmt.Errorf("finding the container of endpoint %s: %w", model.ShortID(endpointID), err)
	}
	c.Labels = maps.Clone(c.Labels)
	return c, nil
}

func (w *Watcher) lookup(ctx context.Context, eng engine, networkID, endpointID string) (model.Container, error) {
	_, attached, err := eng.inspect(ctx, networkID)
	if err != nil {
		return model.Container{}, err
	}
	key, a, ok := endpoint(attached, endpointID)
	if !ok {
		return model.Container{}, ErrUnknown
	}
	if known, ok := w.cache.endpoint(key, a); ok {
		return w.trusted(ctx, eng, known)
	}
	found, err := eng.containers(ctx, byName, a.name)
	if err != nil {
		return model.Container{}, err
	}
	w.cache.images(found)
	if l, ok := indexed(found).find(key, a); ok {
		return w.trusted(ctx, eng, l)
	}
	return model.Container{}, fmt.Errorf("%w, which is called %q", ErrUnknown, a.name)
}

func endpoint(attached map[string]attachment, endpointID string) (string, attachment, bool) {
	for key, a := range attached {
		if a.endpointID == endpointID || key == joinPrefix+endpointID {
			return key, a, true
		}
	}
	return "", attachment{}, false
}
