package host

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// groupOriginal is what is remembered of a NIC when it becomes a managed one:
// its group, and its index, by which it is found should somebody rename it.
//
//	group:eth1 → "0 5"
func groupOriginal(group uint32, index int) string {
	return strconv.FormatUint(uint64(group), 10) + " " + strconv.Itoa(index)
}

// followRenames takes what is remembered of a NIC over to its new name: its
// group and its switches went with it.
func (a *applying) followRenames() {
	names := make(map[int]string)
	for _, l := range a.t.links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	keys := sorted(a.o.Originals.OriginalKeys())
	moved := make(map[string]string) // old name → new name
	for _, key := range keys {
		old, ok := strings.CutPrefix(key, groupPrefix)
		value, known := a.original(key)
		_, number, _ := strings.Cut(value, " ")
		index, err := strconv.Atoi(number)
		if now := names[index]; ok && known && err == nil && now != "" && now != old {
			moved[old] = now
			a.log.Info("NIC renamed", slog.String("old", old), slog.String("new", now))
		}
	}
	values := make(map[string]string)
	for _, key := range keys {
		if to := renamedKey(key, moved); to != key {
			values[to], _ = a.original(key)
			a.forget(key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) { // names may have been swapped
		if err := a.setOriginal(key, values[key]); err != nil {
			a.fail(fmt.Errorf("remembering %s: %w", key, err))
		}
	}
}

// renamedKey is the key of the same thing under the NIC's new name.
func renamedKey(key string, moved map[string]string) string {
	if old, ok := strings.CutPrefix(key, groupPrefix); ok && moved[old] != "" {
		return groupPrefix + moved[old]
	}
	parts := strings.Split(key, "/") // sysctl:net/ipv4/conf/eth1/rp_filter
	if len(parts) == 5 && parts[2] == "conf" && moved[parts[3]] != "" {
		parts[3] = moved[parts[3]]
		return strings.Join(parts, "/")
	}
	return key
}
