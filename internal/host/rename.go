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
	var gone []string
	for _, key := range keys {
		old, known := a.original(key)
		if to := renamedKey(key, moved); to != key && known {
			values[to], gone = a.boot+" "+old, append(gone, key)
		}
	}
	if len(values) == 0 {
		return
	}
	// Names may have been swapped: one's old key is the other's new one then, and stays.
	gone = slices.DeleteFunc(gone, func(key string) bool { _, taken := values[key]; return taken })
	if err := a.o.Originals.MoveOriginals(values, gone); err != nil {
		a.fail(fmt.Errorf("remembering %s: %w", strings.Join(slices.Sorted(maps.Keys(values)), ", "), err))
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
