package events

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/eipnet/eipnet/internal/model"
)

const (
	// inspections is how many networks or images are asked about at once.
	inspections = 4
	// patience is how many lists in a row are made for an image that cannot be read.
	patience = 20
)

// list asks for everything. Containers come last: whoever had an endpoint
// before is among them, unless it was removed since.
func (s *session) list(ctx context.Context) (*View, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	s.cache.begin()
	at := time.Now()
	networks, err := s.eng.networks(ctx)
	if err != nil {
		return nil, err
	}
	attached, err := s.attached(ctx, networks)
	if err != nil {
		return nil, err
	}
	all, err := s.eng.containers(ctx, everyone)
	if err != nil {
		return nil, err
	}
	s.cache.end(all)
	s.running = make(map[string]bool, len(all))
	for _, l := range all {
		s.running[l.id] = l.running
	}
	v := s.assemble(ctx, networks, attached, all)
	v.At = at
	return v, ctx.Err()
}

// attached inspects the networks. It marks those that are gone meanwhile by an
// empty id, and those that Docker cannot tell of as Unlisted.
func (s *session) attached(ctx context.Context, networks []network) ([]map[string]attachment, error) {
	before := s.View()
	attached := make([]map[string]attachment, len(networks))
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(inspections)
	for i := range networks {
		n := &networks[i]
		if n.Driver == "host" || n.Driver == "null" {
			continue
		}
		group.Go(func() error {
			one, endpoints, err := s.eng.inspect(inner, n.ID)
			switch {
			case err == nil:
				// A swarm's manager lists what the swarm knows of a network, and not what it is like on this node.
				*n, attached[i] = one, endpoints
			case errors.Is(err, errGone):
				n.ID = "" // removed meanwhile
			case errors.Is(err, errRefused):
				n.Unlisted = true
				if before == nil || !before.Networks[n.ID].Unlisted {
					s.log.Warn("network not listed", slog.String("network", n.Name), slog.Any("err", err))
				}
			default:
				return err
			}
			return nil
		})
	}
	return attached, group.Wait()
}

// assemble makes the view.
func (s *session) assemble(ctx context.Context, networks []network, attached []map[string]attachment, all []listed) *View {
	index := indexed(all)
	wanted, strays := make(map[string]listed), make(map[string]string)
	for _, l := range all {
		if mode, ok := index.stray(l); ok {
			wanted[l.id], strays[l.id] = l, mode
		}
	}
	for i, n := range networks {
		for key, a := range attached[i] {
			if l, ok := index.find(key, a); ok && n.ID != "" {
				wanted[l.id] = l
				delete(strays, l.id)
			}
		}
	}
	containers, failed := s.believe(ctx, s.eng, wanted)
	s.complain(containers, failed)
	s.again(failed)

	v := &View{Networks: map[string]Network{}, Ours: map[string]string{}, Containers: map[string]model.Container{}, Exists: make(map[string]bool, len(all)), EngineVersion: s.version}
	for _, l := range all {
		v.Exists[l.id] = true
	}
	for i, n := range networks {
		if n.ID == "" {
			continue
		}
		v.add(n, attached[i], func(key string, a attachment) (told, bool) {
			l, ok := index.find(key, a)
			if !ok {
				return told{container: model.Container{Name: a.name}}, true
			}
			return told{container: containers[l.id], options: l.options(n.Network)}, true
		})
		v.Beside = append(v.Beside, n.besides(attached[i], index, containers)...)
		if n.Unlisted {
			v.keep(s.View(), n.ID)
		}
	}
	for id, mode := range strays {
		// Not known: its image cannot be read, and may be where its labels come from.
		if c := containers[id]; len(c.Labels) > 0 || !c.Known && mode == model.ModeHost {
			v.Strays = append(v.Strays, model.Stray{Container: c, Mode: mode, Running: s.running[id]})
		}
	}
	v.sort()
	return v
}

// keep takes over what is on a network from an earlier view.
func (v *View) keep(before *View, networkID string) {
	if before == nil {
		return
	}
	for _, e := range before.Endpoints {
		if e.NetworkID == networkID {
			v.Endpoints = append(v.Endpoints, e)
			v.Containers[e.ID] = e.Container
		}
	}
	for endpoint, id := range before.Ours {
		if id == networkID {
			v.Ours[endpoint] = id
		}
	}
	for _, b := range before.Beside {
		if b.NetworkID == networkID {
			v.Beside = append(v.Beside, b)
		}
	}
}
