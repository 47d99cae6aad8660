package main

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/events"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/state"
)

// collector removes what Docker has forgotten without telling us: containers
// and networks that were removed while the daemon was away, or died with the
// engine. It trusts Docker's list only when the thing has been missing from
// every list for some time: while a container is being started there is a
// moment in which no list has it.
type collector struct {
	driver  *driver.Driver
	watcher *events.Watcher
	store   *state.Store
	log     *slog.Logger
	after   time.Duration

	seen    time.Time            // the last list that was looked at
	missing map[string]time.Time // id → the first list that lacked it
}

// run looks at every new list until ctx ends.
func (c *collector) run(ctx context.Context) error {
	c.missing = make(map[string]time.Time)
	tick := time.NewTicker(max(c.after/4, 100*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if len(c.missing) > 0 {
			c.watcher.Refresh() // where nothing happens lists are a minute apart
		}
		v := c.watcher.View()
		if v == nil || !c.watcher.Up() || v.At.Equal(c.seen) {
			continue
		}
		c.seen = v.At
		if dead := c.look(v); len(dead) > 0 {
			for _, r := range c.store.Rebinds() {
				if dead[r.ContainerID] {
					if err := c.store.DeleteRebind(r.ContainerID); err != nil {
						c.log.Warn("forgetting a rebind failed", slog.String("container", r.Name), slog.Any("err", err))
					}
				}
			}
			alive := func(id string) bool { return !dead[id] }
			if n := c.driver.Sweep(ctx, alive, alive); n > 0 {
				c.log.Info("collected what docker has forgotten", slog.Int("objects", n))
			}
		}
	}
}

// look returns the ids that have been missing for long enough.
func (c *collector) look(v *events.View) map[string]bool {
	dead := make(map[string]bool)
	still := make(map[string]time.Time)
	judge := func(id string, listed bool) {
		if listed {
			return
		}
		first, ok := c.missing[id]
		if !ok {
			first = v.At
		}
		still[id] = first
		if ok && v.At.Sub(first) >= c.after {
			dead[id] = true
		}
	}
	for _, n := range c.store.Networks() {
		if !n.Stock && n.ID != model.ProgramsID {
			_, listed := v.Networks[n.ID]
			judge(n.ID, listed)
		}
	}
	for _, e := range c.store.Endpoints() {
		_, listed := v.Containers[e.ID]
		judge(e.ID, listed || e.NetworkID == model.ProgramsID || v.Networks[e.NetworkID].Unlisted)
	}
	for _, r := range c.store.Rebinds() {
		// Docker knows neither programs nor host entries.
		_, program := c.store.Endpoint(r.ContainerID)
		judge(r.ContainerID, v.Exists[r.ContainerID] || program || model.IsHostEntry(r.ContainerID))
	}
	c.missing = still
	return dead
}

// lost is what Docker had of ours when we started and the state did not: its
// file was lost, or records of it. Containers run on as the kernel has them, and
// nothing is taken away until Docker has it no more.
type lost struct {
	looked    bool
	networks  map[string]string       // names, by id
	endpoints map[string]lostEndpoint // by id; on networks that the state has
}

// lostEndpoint is a container that runs, and the network that it is on.
type lostEndpoint struct{ container, network string }

// any reports whether there is still something.
func (l *lost) any() bool { return len(l.networks)+len(l.endpoints) > 0 }

// look takes in a new list. Only the first one can show a loss: later on Docker
// lists a network for a moment longer than the driver knows it.
func (l *lost) look(v *events.View, store *state.Store) {
	if !l.looked {
		l.looked, l.networks, l.endpoints = true, make(map[string]string), make(map[string]lostEndpoint)
		for _, n := range v.Networks {
			if _, known := store.Network(n.ID); !known && n.Ours() {
				l.networks[n.ID] = n.Name
			}
		}
		for id, network := range v.Ours {
			_, known := store.Endpoint(id)
			_, there := store.Network(network)
			// Without a container nothing is sent by it.
			if c := v.Containers[id]; !known && there && c.ID != "" {
				l.endpoints[id] = lostEndpoint{c.Name, v.Networks[network].Name}
			}
		}
	}
	maps.DeleteFunc(l.networks, func(id, _ string) bool {
		_, still := v.Networks[id]
		return !still
	})
	maps.DeleteFunc(l.endpoints, func(id string, _ lostEndpoint) bool {
		_, still := v.Ours[id]
		return !still
	})
}

// problems names what is lost.
func (l *lost) problems() []model.Problem {
	var out []model.Problem
	for _, name := range l.networks {
		out = append(out, model.Problem{
			Code: model.CodeNetworkUnknown, Severity: model.Failure, Subject: "network " + name,
			Text: "docker has it and eipnet does not remember it: what runs on it goes on as it is, and nothing can be started on it",
			Fix:  "stop its containers, docker network rm " + name + ", and create it again",
		})
	}
	for _, e := range l.endpoints {
		out = append(out, model.Problem{
			Code: model.CodeEndpointLost, Severity: model.Failure, Subject: e.container,
			Text: "docker has it on network " + e.network + " and eipnet does not remember that: it goes on as it is, and nothing that changes is followed for it",
			Fix:  "docker restart " + e.container,
		})
	}
	return out
}
