package model

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Rebind is what a person said about a running container with `eipnet rebind`.
// It stands above everything else, and stays until the container is removed.
type Rebind struct {
	ContainerID string            `json:"container_id"`
	Name        string            `json:"name"`    // the container's, when it was said
	Options     map[string]string `json:"options"` // eip.* entries
	// Lost are the ids of endpoints of the container's that the kernel had pinned when
	// the state was lost: what a rebind may have said of them is not known any more.
	Lost []string `json:"lost,omitempty"`
}

// ParseRebind reads the words of `eipnet rebind CONTAINER WORD…`: key=value
// entries as in labels, of which one names a NIC. A word without a = is the name of a NIC.
func ParseRebind(words []string) (map[string]string, error) {
	options := make(map[string]string)
	for _, w := range words {
		key, value, entry := strings.Cut(w, "=")
		if !entry {
			key, value = KeyNIC, w
		}
		if _, twice := options[key]; twice {
			return nil, fmt.Errorf("%s is said twice", key)
		}
		options[key] = value
	}
	return options, Rebind{Options: options}.Check()
}

// Check returns an error unless the options are well-formed and name a NIC.
func (r Rebind) Check() error {
	o, err := ParsePinOptions(r.Options)
	if err == nil && o.Selector.IsZero() {
		err = errors.New("say where to, as eth1 or eip.nic=eth1; " + acceptedForms)
	}
	return err
}

// Clone returns a copy that shares nothing.
func (r Rebind) Clone() Rebind {
	r.Options, r.Lost = maps.Clone(r.Options), slices.Clone(r.Lost)
	return r
}
