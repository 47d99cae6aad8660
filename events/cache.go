package events

import (
	"strings"
	"sync"

	"github.com/eipnet/eipnet/internal/model"
)

// maxCached bounds the cache between two full lists; a full list replaces it.
const maxCached = 1 << 16

// cache remembers containers by id and, as long as they have not been started,
// by name.
//
// While a container is started its endpoint is known by the container's name
// only. Events come a little late, so a name alone might still mean a container
// that is gone, and its labels would pin the new one to the wrong NIC. A
// container that has never been started cannot be the one that just went, so a
// name is trusted until then; a second start asks Docker.
type cache struct {
	mu      sync.Mutex
	byID    map[string]listed
	created map[string]string // name → id
	// touched holds the ids that events told of since the running list began:
	// what they said is newer than the list.
	touched map[string]bool
}

func newCache() *cache {
	c := &cache{}
	c.clear()
	return c
}

func (c *cache) clear() {
	c.byID, c.created, c.touched = map[string]listed{}, map[string]string{}, map[string]bool{}
}

// see takes over a container event, and reports whether the cache overflowed
// and wants a full list.
func (c *cache) see(e event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched[e.id] = true
	switch e.action {
	case "destroy":
		c.drop(e.id)
	case "create":
		c.put(fromEvent(e, true))
	case "start", "die":
		c.put(fromEvent(e, false))
	case "rename":
		c.put(fromEvent(e, c.byID[e.id].created))
	}
	if len(c.byID) > maxCached || len(c.touched) > maxCached {
		c.clear()
		return true
	}
	return false
}

func fromEvent(e event, created bool) listed {
	return listed{
		id:      e.id,
		name:    strings.TrimPrefix(e.attributes["name"], "/"),
		labels:  model.EipOnly(e.attributes),
		created: created,
	}
}

func (c *cache) put(l listed) {
	if l.image == "" { // events do not tell it, and it never changes
		l.image = c.byID[l.id].image
	}
	c.drop(l.id)
	c.byID[l.id] = l
	if l.created && l.name != "" {
		c.created[l.name] = l.id
	}
}

func (c *cache) drop(id string) {
	if name := c.byID[id].name; c.created[name] == id {
		delete(c.created, name)
	}
	delete(c.byID, id)
}

// begin marks the start of a full list, end takes over its result.
func (c *cache) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.touched)
}

func (c *cache) end(all []listed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	there := make(map[string]bool, len(all))
	for _, l := range all {
		there[l.id] = true
		if c.touched[l.id] {
			c.learn(l)
		} else {
			c.put(l)
		}
	}
	for id := range c.byID {
		if !there[id] && !c.touched[id] {
			c.drop(id)
		}
	}
}

// images takes over the images of containers that only events told of.
func (c *cache) images(found []listed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range found {
		c.learn(l)
	}
}

func (c *cache) learn(l listed) {
	if known, ok := c.byID[l.id]; ok {
		known.image = l.image
		c.byID[l.id] = known
	}
}

// endpoint finds the container of an endpoint by its key in a network. One whose
// labels cannot be told from its image's yet is not found.
func (c *cache) endpoint(key string, a attachment) (l listed, ok bool) {
	if joining(key) {
		l, ok = c.name(a.name)
	} else {
		l, ok = c.id(key)
	}
	return l, ok && (len(l.labels) == 0 || l.image != "")
}

// distrust forgets which containers were never started: events may have been missed.
func (c *cache) distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.created)
}

// labelled reports whether any container that may be about to run bears eip.* labels.
func (c *cache) labelled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.byID {
		if len(l.labels) > 0 && !l.running {
			return true
		}
	}
	return false
}

func (c *cache) id(id string) (listed, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.byID[id]
	return l, ok
}

func (c *cache) name(name string) (listed, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.byID[c.created[name]]
	return l, ok
}
