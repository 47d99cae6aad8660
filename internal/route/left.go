package route

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// List describes all rules and routes that are ours, in the words of `ip`.
func (m *Manager) List(ctx context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing rules and routes: %w", err)
	}
	rules, err := m.listRules()
	if err != nil {
		return nil, fmt.Errorf("listing rules: %w", err)
	}
	routes, err := m.allRoutes()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, k := range rules {
		out = append(out, "rule "+describeRule(k.rule))
	}
	for _, k := range routes {
		out = append(out, "route "+describeRoute(k.route))
	}
	return out, nil
}

// allRoutes lists all routes that are ours.
func (m *Manager) allRoutes() ([]kernelRoute, error) {
	links, err := dump(m.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	routes, err := m.listRoutes(names)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return routes, nil
}

// NICIDs tells which NIC each of our tables leads to, as the kernel has it: what
// an earlier process has left. Its default route says so, or where there is
// none any other route. Of two tables that lead to one NIC the first counts.
func (m *Manager) NICIDs() (map[string]model.NICID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	routes, err := m.allRoutes()
	if err != nil {
		return nil, err
	}
	list := make([]plan.Route, 0, len(routes))
	for _, k := range routes {
		list = append(list, k.route)
	}
	// Default routes first, those of IPv4 before those of IPv6.
	slices.SortFunc(list, func(a, b plan.Route) int {
		return cmp.Or(cmp.Compare(a.Dst.Bits(), b.Dst.Bits()), compareRoutes(a, b))
	})
	ids, known := make(map[string]model.NICID), make(map[model.Table]bool)
	for _, r := range list {
		if r.Dev == "" || !ofNIC(r.Table) || known[r.Table] {
			continue
		}
		known[r.Table] = true
		if _, twice := ids[r.Dev]; !twice {
			ids[r.Dev] = model.NICID(r.Table - model.TableInside) //nolint:gosec // at most MaxNICID
		}
	}
	return ids, nil
}

// ofNIC reports whether it is a managed NIC's table.
func ofNIC(t model.Table) bool { return t > model.TableInside && t < model.TableNull }
