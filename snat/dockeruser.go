package snat

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/crash"
)

const (
	dockerUser    = "DOCKER-USER"    // Docker's; never made, only jumped from
	eipnetForward = "EIPNET-FORWARD" // ours
	forwardChain  = "FORWARD"

	// ourJump is our one line in DOCKER-USER (or in FORWARD) behind the chain's
	// name, as iptables -S prints it.
	ourJump    = " -m comment --comment eipnet -j " + eipnetForward
	jumpRule   = "-A " + dockerUser + ourJump
	returnRule = "-A " + dockerUser + " -j RETURN"

	// acceptPolicy lets pass what no rule decides.
	acceptPolicy = "-P " + forwardChain + " ACCEPT"

	// forkTimeout ends an iptables that hangs; lockSeconds bounds its own wait
	// for the xtables lock and has to be less.
	forkTimeout = 10 * time.Second
	lockSeconds = "5"

	// exitAbsent is iptables' exit status for a chain that is not there, in
	// whatever words: they differ between versions and flavours.
	exitAbsent = 1
)

// DockerUser lets our bridges' packets pass where Docker set the policy of
// iptables' FORWARD to DROP: there an accept in a table of our own is not
// final. In table filter of iptables and ip6tables it keeps
//
//	-A DOCKER-USER -m comment --comment eipnet -j EIPNET-FORWARD
//	-A EIPNET-FORWARD -o BRIDGE -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment eipnet -j ACCEPT
//	-A EIPNET-FORWARD -i BRIDGE -o BRIDGE -m comment --comment eipnet -j ACCEPT
//	-A EIPNET-FORWARD -o BRIDGE -m comment --comment eipnet -j DROP
//	-A EIPNET-FORWARD -i BRIDGE -m comment --comment eipnet -j ACCEPT
//
// with the jump last, so that the user's own rules decide first (before the
// RETURN that engines until 28.2 put at the end), and the last line of each
// bridge behind all others. What may pass between networks is decided in our own
// table, earlier; were that lost, nothing comes in here but to published ports. DOCKER-USER is Docker's, and never made.
// As long as FORWARD's policy is not ACCEPT the jump is also at its end: where it
// does not lead to DOCKER-USER (after iptables -F, or with Docker's nftables
// backend), and where a RETURN of the user's there comes before our jump (the
// widespread recipe for ufw has one for whole subnets), the policy would decide.
// What the user drops in either chain is gone by then. Not for use by several
// goroutines at once.
type DockerUser struct {
	log   *slog.Logger
	tools []tool
}

// Outcome says what [DockerUser.Apply] did.
type Outcome struct {
	Changed bool // something was written
	// Absent: bridges are to pass, and no flavour of iptables has a DOCKER-USER
	// chain for IPv4 (for IPv6 Docker may never make one). The job is done when
	// Docker has made one; look again then. False where there is no iptables,
	// since nothing can come of looking.
	Absent bool
}

// tool is one flavour of iptables for one family. Both flavours are looked at,
// because Docker may use another one than `iptables` means to us.
type tool struct {
	name    string // "ip6tables-nft"
	path    string
	restore string // path of its -restore
	names   string // legacy: the file that lists the tables in use
}

// NewDockerUser looks for the iptables programs. With none there is nothing to
// do and no error.
func NewDockerUser(ctx context.Context, log *slog.Logger) (*DockerUser, error) {
	d := &DockerUser{log: cmp.Or(log, slog.New(slog.DiscardHandler))}
	for family, base := range []string{"iptables", "ip6tables"} {
		seen := make(map[bool]bool) // legacy → found
		for _, name := range []string{base, base + "-nft", base + "-legacy"} {
			restore, err := exec.LookPath(name + "-restore")
			if err != nil {
				continue
			}
			path, err := exec.LookPath(name)
			if err != nil {
				continue
			}
			version, err := run(ctx, "", path, "--version")
			if err != nil {
				return nil, fmt.Errorf("probing %s: %w", name, err)
			}
			legacy := !strings.Contains(version, "(nf_tables)")
			if seen[legacy] {
				continue
			}
			seen[legacy] = true
			t := tool{name: name, path: path, restore: restore}
			if legacy {
				t.names = "/proc/thread-self/net/" + [...]string{"ip_tables_names", "ip6_tables_names"}[family]
			}
			d.tools = append(d.tools, t)
		}
	}
	return d, nil
}

// Apply makes the chains let just these bridges pass; with none, the jump and
// the chain are removed. Applying the same again writes nothing.
func (d *DockerUser) Apply(ctx context.Context, bridges []string) (Outcome, error) {
	bridges = slices.Compact(slices.Sorted(slices.Values(bridges)))
	for _, b := range bridges {
		if b == "" || len(b) >= unix.IFNAMSIZ || strings.ContainsAny(b, " \t\n\"'\\+") {
			// With + at its end it would be a wildcard.
			return Outcome{}, fmt.Errorf("accepting bridge %q in %s: no interface name", b, dockerUser)
		}
	}
	out := Outcome{Absent: len(bridges) > 0 && len(d.tools) > 0}
	var errs []error
	for _, t := range d.tools {
		found, wrote, err := t.apply(ctx, bridges)
		if err != nil {
			errs = append(errs, fmt.Errorf("accepting bridges by %s: %w", t.name, err))
		}
		if found && !t.v6() {
			out.Absent = false
		}
		if wrote {
			crash.Point(t.name)
			out.Changed = true
			d.log.Info("changed the accepts in DOCKER-USER", slog.String("tool", t.name), slog.Any("bridges", bridges))
		}
	}
	return out, errors.Join(errs...)
}

// apply reports whether this flavour has a DOCKER-USER chain, and whether it wrote.
// What was listed may not be so any more when it writes: Docker changes these
// chains rule by rule, its jump in FORWARD (up to 27) with every network. It
// looks again then, up to three times, unless it failed with what was there before, too.
func (t tool) apply(ctx context.Context, bridges []string) (found, wrote bool, err error) {
	if !t.inUse() {
		return false, false, nil
	}
	var before filter
	for tries := 1; ; tries++ {
		now, err := t.look(ctx)
		if err != nil {
			return now.found, false, err
		}
		lines := now.changes(bridges)
		if len(lines) == 0 {
			return now.found, false, nil
		}
		text := "*filter\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
		_, err = run(ctx, text, t.restore, "--noflush", "-w", lockSeconds)
		if err == nil || tries == 3 || reflect.DeepEqual(now, before) {
			return now.found, err == nil, err
		}
		before = now
	}
}

// look lists the chains.
func (t tool) look(ctx context.Context) (now filter, err error) {
	if now.user, now.found, err = t.list(ctx, dockerUser); err != nil {
		return now, err
	}
	if now.forward, _, err = t.list(ctx, forwardChain); err != nil {
		return now, err
	}
	now.ours, now.exists, err = t.list(ctx, eipnetForward)
	return now, err
}

// inUse reports whether asking this flavour is harmless. Asking the legacy one
// makes its tables, so its rules are looked at only where they are in use.
func (t tool) inUse() bool {
	if t.names == "" {
		return true
	}
	tables, err := os.ReadFile(t.names)
	return err == nil && slices.Contains(strings.Fields(string(tables)), "filter")
}

func (t tool) v6() bool { return strings.HasPrefix(t.name, "ip6") }

// list returns what iptables -S prints of a chain (its policy, if it has one,
// and its rules), and whether it exists.
func (t tool) list(ctx context.Context, chain string) ([]string, bool, error) {
	text, err := run(ctx, "", t.path, "-w", lockSeconds, "-S", chain)
	if failed, ok := errors.AsType[*exec.ExitError](err); ok && failed.ExitCode() == exitAbsent {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("listing chain %s: %w", chain, err)
	}
	var lines []string
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "-A ") || strings.HasPrefix(l, "-P ") {
			lines = append(lines, strings.TrimSpace(l))
		}
	}
	return lines, true, nil
}

// filter is what iptables -S prints of three chains of table filter.
type filter struct {
	user, forward, ours []string
	found, exists       bool // DOCKER-USER, and our chain
}

// changes returns the lines for iptables-restore --noflush that make the chains
// what they should be; none where they are.
func (f filter) changes(bridges []string) []string {
	var want, lines []string
	add := func(match, target string) {
		want = append(want, fmt.Sprintf("-A %s %s -m comment --comment eipnet -j %s", eipnetForward, match, target))
	}
	for _, b := range bridges {
		add("-o "+b+" -m conntrack --ctstate RELATED,ESTABLISHED,DNAT", "ACCEPT")
		add("-i "+b+" -o "+b, "ACCEPT")
		add("-o "+b, "DROP")
	}
	for _, b := range bridges {
		add("-i "+b, "ACCEPT")
	}
	wanted := len(want) > 0
	last := wanted && len(f.forward) > 0 && f.forward[0] != acceptPolicy
	if !f.found && !last {
		want = nil
	}
	if len(want) > 0 && !slices.Equal(unquoted(f.ours), want) {
		lines = append(lines, ":"+eipnetForward+" - [0:0]") // makes or empties it
		lines = append(lines, want...)
	}
	lines = append(lines, jumpLines(dockerUser, f.user, wanted && f.found)...)
	lines = append(lines, jumpLines(forwardChain, f.forward, last)...)
	if len(want) == 0 && f.exists {
		lines = append(lines, "-F "+eipnetForward, "-X "+eipnetForward)
	}
	return lines
}

// jumpLines returns the lines that give a chain our jump, once and last (but
// before a RETURN that is last), or take it away.
func jumpLines(chain string, listing []string, want bool) []string {
	var jumps, others []string
	at := -1
	rules := slices.DeleteFunc(slices.Clone(listing), func(l string) bool { return strings.HasPrefix(l, "-P ") })
	for i, r := range rules {
		if isJump(r) {
			jumps, at = append(jumps, r), i
		} else {
			others = append(others, r)
		}
	}
	last, place := len(others), "-A "+chain // not by number: Docker may change the chain before we write
	if last > 0 && others[last-1] == returnRule {
		place = fmt.Sprintf("-I %s %d", chain, last)
		last--
	}
	right := len(jumps) == 1 && at == last && unquoted(jumps)[0] == "-A "+chain+ourJump
	if want && right {
		return nil
	}
	var lines []string
	for _, j := range jumps {
		lines = append(lines, "-D"+strings.TrimPrefix(j, "-A"))
	}
	if want {
		lines = append(lines, place+ourJump)
	}
	return lines
}

// isJump reports whether a rule, as iptables -S prints it, leads to our chain.
func isJump(rule string) bool { return strings.HasSuffix(rule, " "+eipnetForward) }

// unquoted drops the quotes that some versions print around comments.
func unquoted(rules []string) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = strings.ReplaceAll(r, `"`, "")
	}
	return out
}

// run runs a program, for as long as the context lives but never for long, and
// returns what it printed.
func run(ctx context.Context, stdin, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, forkTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("running %s %s: %w: %s", path, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
