package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// query is one question about a machine's state.
type query struct {
	args   []string
	sorted bool
	clean  []*regexp.Regexp // matches are cut out
}

// What changes by itself: interface indexes, carrier, counters, life times, comments with a time.
var (
	cutIndex    = regexp.MustCompile(`^\d+: |@(if\d+|\S+)`)
	cutFlags    = regexp.MustCompile(` state \S+| mode \S+|NO-CARRIER,|,LOWER_UP| linkdown| link-netnsid \d+| numtxqueues.*| qlen \d+`)
	cutBridge   = regexp.MustCompile(` (hello_timer|tcn_timer|topology_change_timer|gc_timer|forward_delay_timer|hold_timer|message_age_timer|designated_root|bridge_id|root_id) +\S+`)
	cutLife     = regexp.MustCompile(`\s+valid_lft \S+ preferred_lft \S+| (temporary|tentative|dynamic)\b| expires \S+`)
	cutCounters = regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\]| # handle \d+`)
	cutIface    = regexp.MustCompile(`\bif\d+\b`)
	cutComment  = regexp.MustCompile(`^#.*`)
	cutCache    = regexp.MustCompile(`.*\bcache\b.*`)
	cutLocal    = regexp.MustCompile(`.*\b(fe80:|ff00:).*`) // a bridge gets them with its first port
	cutWrap     = regexp.MustCompile(`\\`)                  // ip -o writes it for the end of a line
	spaces      = regexp.MustCompile(`[ \t]+`)
)

// netQueries is what both hosts and machines are asked.
func netQueries() []query {
	return []query{
		{[]string{"ip", "-d", "-o", "link", "show"}, true, []*regexp.Regexp{cutIndex, cutFlags, cutBridge, cutIface, cutWrap}},
		{[]string{"ip", "-o", "addr", "show"}, true, []*regexp.Regexp{cutIndex, cutLife, cutLocal, cutWrap}},
		{[]string{"ip", "rule", "show"}, false, nil},
		{[]string{"ip", "-6", "rule", "show"}, false, nil},
		{[]string{"ip", "-4", "route", "show", "table", "all"}, true, []*regexp.Regexp{cutFlags, cutCache}},
		{[]string{"ip", "-6", "route", "show", "table", "all"}, true, []*regexp.Regexp{cutFlags, cutLife, cutCache, cutLocal}},
		{[]string{"nft", "list", "ruleset"}, false, []*regexp.Regexp{cutCounters, cutComment}},
		{[]string{"iptables-save"}, false, []*regexp.Regexp{cutCounters, cutComment}},
		{[]string{"ip6tables-save"}, false, []*regexp.Regexp{cutCounters, cutComment}},
		{[]string{"ss", "-Hlntu"}, true, nil},
	}
}

// ask runs a query; a program that is not there says nothing.
func (q query) ask(ctx context.Context, command func(context.Context, string, ...string) *exec.Cmd) (string, error) {
	// The shell finds out whether the program is there, on the host as on the machine.
	script := `command -v "$0" >/dev/null || exit 0; exec "$0" "$@"`
	cmd := command(ctx, "sh", append([]string{"-c", script}, q.args...)...)
	out, err := runCmd(cmd, q.args[0], q.args[1:])
	if err != nil {
		return "", err
	}
	var lines []string
	for line := range strings.SplitSeq(out, "\n") {
		for _, re := range q.clean {
			line = re.ReplaceAllString(line, "")
		}
		if q.args[0] == "ss" {
			line = listener(line)
		}
		if line = strings.TrimRight(spaces.ReplaceAllString(line, " "), " "); line != "" {
			lines = append(lines, line)
		}
	}
	if q.sorted {
		slices.Sort(lines)
		lines = slices.Compact(lines)
	}
	return fmt.Sprintf("## %s\n%s\n", strings.Join(q.args, " "), strings.Join(lines, "\n")), nil
}

// listener keeps protocol and local address of a line of ss.
func listener(line string) string {
	f := strings.Fields(line)
	if len(f) < 5 {
		return ""
	}
	return f[0] + " " + f[4]
}

// HostState describes the host's network in a form that two moments can be compared by: links,
// addresses, rules, routes, firewall, settings, and listening sockets. What changes by itself (indexes,
// counters, carrier, life times) is left out; lists without an order are sorted.
func (l *Lab) HostState(ctx context.Context) (string, error) {
	var b strings.Builder
	for _, q := range netQueries() {
		text, err := q.ask(ctx, l.Host.Command)
		if err != nil {
			return "", fmt.Errorf("describing the host: %w", err)
		}
		b.WriteString(text)
	}
	var text string
	err := l.InHost(func() (err error) {
		text, err = sysctls()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("describing the host: %w", err)
	}
	b.WriteString(text)
	return b.String(), nil
}

// sysctls lists the settings of the thread's network namespace that a router changes.
func sysctls() (string, error) {
	var b strings.Builder
	b.WriteString("## sysctl\n")
	for _, pattern := range []string{
		"net/ipv4/ip_forward", "net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_nonlocal_bind", "net/ipv4/fwmark_reflect",
		"net/ipv4/tcp_fwmark_accept", "net/bridge/*", "net/netfilter/nf_conntrack_acct", "net/netfilter/nf_conntrack_tcp_be_liberal",
		"net/ipv4/conf/*/forwarding", "net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/arp_*", "net/ipv4/conf/*/route_localnet",
		"net/ipv4/conf/*/send_redirects", "net/ipv4/conf/*/accept_local", "net/ipv4/conf/*/src_valid_mark", "net/ipv4/conf/*/proxy_arp",
		"net/ipv6/conf/*/forwarding", "net/ipv6/conf/*/accept_ra", "net/ipv6/conf/*/disable_ipv6", "net/ipv6/conf/*/proxy_ndp",
	} {
		paths, err := filepath.Glob(filepath.Join("/proc/sys", pattern))
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			value, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // the interface has just gone
			}
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "%s = %s\n", strings.TrimPrefix(path, "/proc/sys/"), strings.TrimSpace(string(value)))
		}
	}
	return b.String(), nil
}

// MachineState describes the machine that the lab runs on: its own network namespace, mounts, packages,
// units, and controllers of cgroups. A lab must not change it.
func MachineState(ctx context.Context) (string, error) {
	queries := append(netQueries(),
		query{[]string{"dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"}, true, nil},
		query{[]string{"findmnt", "-rn", "-o", "TARGET,SOURCE,FSTYPE"}, true, nil},
		query{[]string{"sh", "-c", "ls /etc/systemd/system /lib/systemd/system /etc/init.d /var/run/netns 2>/dev/null || true"}, false, nil},
	)
	var b strings.Builder
	for _, q := range queries {
		text, err := q.ask(ctx, exec.CommandContext)
		if err != nil {
			return "", fmt.Errorf("describing the machine: %w", err)
		}
		b.WriteString(text)
	}
	text, err := sysctls()
	if err != nil {
		return "", fmt.Errorf("describing the machine: %w", err)
	}
	b.WriteString(text)
	roots, err := mountsOf("cgroup2")
	if err != nil {
		return "", fmt.Errorf("describing the machine: %w", err)
	}
	for _, root := range roots {
		enabled, err := os.ReadFile(filepath.Join(root, enabledControllers))
		if err != nil {
			return "", fmt.Errorf("describing the machine: %w", err)
		}
		fmt.Fprintf(&b, "## controllers of %s\n%s\n", root, enabled)
	}
	return b.String(), nil
}
