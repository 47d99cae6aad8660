package events

import (
	"strconv"
	"testing"
)

func create(id, name string) event {
	return event{kind: "container", action: "create", id: id, attributes: map[string]string{"name": name, "eip.nic": id}}
}

func TestCacheEventsAreNewerThanTheList(t *testing.T) {
	c := newCache()
	c.see(create("old", "old"))
	c.begin()
	c.see(create("made", "made"))
	c.see(event{action: "destroy", id: "removed"})
	c.see(event{action: "rename", id: "renamed", attributes: map[string]string{"name": "after"}})
	c.end([]listed{{id: "removed", name: "removed"}, {id: "renamed", name: "before"}, {id: "other", name: "other", created: true}})
	for id, want := range map[string]string{"old": "", "made": "made", "removed": "", "renamed": "after", "other": "other"} {
		if l, ok := c.id(id); ok != (want != "") || l.name != want {
			t.Errorf("%s: %+v, %v", id, l, ok)
		}
	}
	if l, ok := c.name("made"); !ok || l.id != "made" {
		t.Error("a created container is not found by name")
	}
	if l, ok := c.name("other"); !ok || l.id != "other" {
		t.Error("a listed container that was never started is not found by name")
	}
}

func TestCacheTrustsNamesUntilTheStart(t *testing.T) {
	c := newCache()
	c.see(create("a", "x"))
	c.see(event{action: "start", id: "a", attributes: map[string]string{"name": "x"}})
	if l, ok := c.name("x"); ok {
		t.Errorf("found %+v", l)
	}
	c.see(create("b", "x"))
	c.see(event{action: "destroy", id: "a"})
	if l, ok := c.name("x"); !ok || l.id != "b" || l.labels["eip.nic"] != "b" {
		t.Errorf("found %+v, %v", l, ok)
	}
	if _, ok := c.name(""); ok {
		t.Error("found a container without name")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	overflows := 0
	for i := range maxCached + 10 {
		if c.see(create(strconv.Itoa(i), strconv.Itoa(i))) {
			overflows++
		}
	}
	if overflows != 1 || len(c.byID) > 10 || len(c.touched) > 10 {
		t.Errorf("%d overflows, %d entries, %d touched", overflows, len(c.byID), len(c.touched))
	}
}
