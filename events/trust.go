package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/eipnet/eipnet/internal/model"
)

// ErrUntrusted is the error of [Watcher.Container] for a container with eip.*
// labels whose image cannot be read: nobody knows which of them come from it.
var ErrUntrusted = errors.New("cannot tell the container's labels from its image's")

// maxImages bounds how many images are remembered.
const maxImages = 1 << 12

// images remembers which eip.* labels images bring along. An image's id says
// what is in it, so this is true for ever.
type images struct {
	mu     sync.Mutex
	labels map[string]map[string]string // by image id
}

func (i *images) get(id string) (map[string]string, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	labels, ok := i.labels[id]
	return labels, ok
}

func (i *images) put(id string, labels map[string]string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.labels == nil || len(i.labels) >= maxImages {
		i.labels = make(map[string]map[string]string)
	}
	i.labels[id] = labels
}

// container tells the labels that somebody gave the container from those that
// came with its image. Docker keeps one list of both: a label that is given with
// the very value that the image has is taken for the image's.
func (l listed) container(ofImage map[string]string) model.Container {
	c := model.Container{Known: true, ID: l.id, Name: l.name}
	for k, v := range l.labels {
		if own, ok := ofImage[k]; ok && own == v {
			c.Ignored = append(c.Ignored, k+"="+v)
			continue
		}
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		c.Labels[k] = v
	}
	slices.Sort(c.Ignored)
	return c
}

// trusted is the container with its own labels only. It costs a question where
// there are eip.* labels and the image has not been seen before.
func (w *Watcher) trusted(ctx context.Context, eng engine, l listed) (model.Container, error) {
	if len(l.labels) == 0 {
		return l.container(nil), nil
	}
	ofImage, err := w.ofImage(ctx, eng, l.image)
	if err != nil {
		return l.untrusted(), err
	}
	return l.container(ofImage), nil
}

func (l listed) untrusted() model.Container { return model.Container{ID: l.id, Name: l.name} }

func (w *Watcher) ofImage(ctx context.Context, eng engine, id string) (map[string]string, error) {
	if labels, ok := w.images.get(id); ok {
		return labels, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	labels, err := eng.imageLabels(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	w.images.put(id, labels)
	return labels, nil
}

// believe makes containers, by id, of what Docker listed. The errors say why a
// container is not Known.
func (w *Watcher) believe(ctx context.Context, eng engine, all map[string]listed) (map[string]model.Container, map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, imagesTimeout)
	defer cancel()
	out, failed := make(map[string]model.Container, len(all)), make(map[string]error)
	byImage := make(map[string][]listed)
	for id, l := range all {
		if len(l.labels) == 0 {
			out[id] = l.container(nil)
		} else {
			byImage[l.image] = append(byImage[l.image], l)
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(inspections)
	for image, ls := range byImage {
		group.Go(func() error {
			ofImage, err := w.ofImage(ctx, eng, image)
			mu.Lock()
			defer mu.Unlock()
			for _, l := range ls {
				if out[l.id] = l.container(ofImage); err != nil {
					out[l.id], failed[l.id] = l.untrusted(), err
				}
			}
			return nil
		})
	}
	_ = group.Wait()
	return out, failed
}

// complain logs of each container once that it is not trusted.
func (s *session) complain(containers map[string]model.Container, failed map[string]error) {
	for _, id := range slices.Sorted(maps.Keys(failed)) {
		if s.untrusted[id] == nil {
			s.log.Warn("container held", slog.String("container", containers[id].Name), slog.Any("err", failed[id]))
		}
	}
	s.untrusted = failed
}

// again makes the session dirty for images that may be readable soon. For those
// that are not there, it waits for an event or the next sweep.
func (s *session) again(failed map[string]error) {
	tries := make(map[string]int)
	for id, err := range failed {
		if errors.Is(err, errGone) {
			continue
		}
		if tries[id] = s.tries[id] + 1; tries[id] <= patience {
			s.mark()
		}
	}
	s.tries = tries
}
