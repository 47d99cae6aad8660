package route

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
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
	links, err := dump(m.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	routes, err := m.listRoutes(linkNames(links))
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
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

func linkNames(links []netlink.Link) map[int]string {
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names
}
