package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// List describes what is ours on the host: devices, the group of managed NICs,
// and switches that have the value that we gave them.
func (h *Host) List(ctx context.Context) ([]string, error) {
	t, err := h.readLinks(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range t.links {
		at := l.Attrs()
		if isOurs(l) || isOurVeth(l) || at.Name == model.NullDevice && l.Type() == "bridge" {
			out = append(out, "link "+at.Name)
		}
		if at.Group == model.NICGroup {
			out = append(out, fmt.Sprintf("group %d of %s", model.NICGroup, at.Name))
		}
	}
	for _, key := range sorted(h.o.Originals.OriginalKeys()) {
		path, ok := strings.CutPrefix(key, sysctlPrefix)
		value, _ := h.original(key)
		old, ours, _ := strings.Cut(value, arrow)
		if now, err := h.readSysctl(path); ok && err == nil && now == ours {
			out = append(out, fmt.Sprintf("sysctl %s=%s (before: %s)", path, ours, old))
		}
	}
	return out, nil
}

// Alike lists switches that have the value which eipnet gives them: forwarding,
// and those of the NICs in our group. For who has lost the memory of what they
// were before; somebody else may have set them so.
func (h *Host) Alike(ctx context.Context) ([]string, error) {
	t, err := h.readLinks(ctx)
	if err != nil {
		return nil, err
	}
	ours := map[string]string{ipForward: "1", plan.Forwarding6: "1"}
	for _, l := range t.links {
		if at := l.Attrs(); at.Group == model.NICGroup {
			ours[conf4(at.Name, "rp_filter")], ours[conf4(at.Name, "arp_ignore")], ours[conf4(at.Name, "arp_announce")] = "2", "1", "2"
		}
	}
	var out []string
	for _, path := range slices.Sorted(maps.Keys(ours)) {
		if now, err := h.readSysctl(path); err == nil && now == ours[path] {
			out = append(out, path+"="+now)
		}
	}
	return out, nil
}

// RemoveAll deletes all devices of ours and puts groups and switches back. A
// NIC in our group of which nothing is remembered gets the default one. It
// goes on after an error and returns all of them, joined.
func (h *Host) RemoveAll(ctx context.Context) error {
	t, err := h.readLinks(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range t.links {
		at := l.Attrs()
		if isOurVeth(l) {
			errs = append(errs, h.DeleteLink(ctx, at.Name))
		}
		if at.Group == model.NICGroup {
			errs = append(errs, h.forgotten(at.Name, at.Index))
		}
	}
	_, err = h.Apply(ctx, plan.Links{}, nil, true)
	return errors.Join(append(errs, err)...)
}

// forgotten remembers the default group for a NIC in ours, if nothing is remembered.
func (h *Host) forgotten(nic string, index int) error {
	if _, known := h.original(groupPrefix + nic); known {
		return nil
	}
	return h.setOriginal(groupPrefix+nic, groupOriginal(0, index))
}
