package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/eipnet/eipnet/internal/firewalld"
	"github.com/eipnet/eipnet/internal/host"
	"github.com/eipnet/eipnet/internal/route"
	"github.com/eipnet/eipnet/snat"
)

// cleanupOptions are the flags of cleanup.
type cleanupOptions struct {
	dockerHost, apiSocket, stateDir string
	pluginSockets                   []string
	force, dryRun                   bool

	log *slog.Logger
}

func (o *cleanupOptions) register(fs *pflag.FlagSet) {
	fs.StringVar(&o.dockerHost, "docker-host", defaultDockerHost, "Docker's API, a local unix `URL`")
	fs.StringSliceVar(&o.pluginSockets, "plugin-socket", []string{defaultPluginSocket}, "unix `paths` where Docker found the driver")
	fs.StringVar(&o.apiSocket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	fs.StringVar(&o.stateDir, "state-dir", defaultStateDir, "`directory` that remembers networks, endpoints and what the host was like")
	fs.BoolVar(&o.force, "force", false, "go on though there are networks of eipnet's or pinned containers: they lose their network, or leave as the host does")
	fs.BoolVar(&o.dryRun, "dry-run", false, "only print what would be removed")
}

func cleanupCommand() *cobra.Command {
	var o cleanupOptions
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything of eipnet's from the host",
		Long: `Remove everything that eipnet put on this host: nftables tables, rules and
routes, links, interface groups, accepts in DOCKER-USER, sockets and the state
directory, and put sysctls back to what they were. Then look again: what is
left is listed.

It needs root, and refuses while the daemon runs. It also refuses as long as
Docker has networks of eipnet's or runs containers with eip.* labels; --force
goes on all the same.

Exit codes: 0 nothing of eipnet is left, 1 refused or failed, 2 something is
left, or may be: where the state file was lost, nobody knows what sysctls were.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.log, err = newLogger("text", "warn"); err != nil {
				return err
			}
			return cleanup(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	o.register(cmd.Flags())
	return cmd
}

// cleanup looks, removes, and looks again.
func cleanup(ctx context.Context, o cleanupOptions, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("cleanup changes the host's network and needs root; try: sudo eipnet cleanup")
	}
	running := daemonRuns(o)
	if running != nil && !o.dryRun {
		return fmt.Errorf("cleaning up: %w: stop it first", running)
	}
	memory, err := recall(o)
	if err != nil {
		return err
	}
	defer memory.close()
	used := stillUsed(ctx, o, memory)
	if len(used) > 0 && !o.force && !o.dryRun {
		return fmt.Errorf("cleaning up: still in use: %s; remove them first, or say --force", strings.Join(used, ", "))
	}
	l, err := openLeftovers(ctx, o, memory)
	if err != nil {
		return err
	}
	defer l.close()
	before, err := l.list(ctx)
	if err != nil {
		return err
	}
	unknown, err := l.unknown(ctx, memory, before) // now, as the group tells which NICs were managed
	if err != nil {
		return err
	}
	if o.dryRun {
		printDryRun(out, before, unknown, running, used)
		return nil
	}
	removeErr := l.remove(ctx)
	left, err := l.list(ctx)
	if err = errors.Join(removeErr, err); err != nil {
		err = fmt.Errorf("cleaning up: %w", err)
	}
	for _, item := range before {
		if !slices.Contains(left, item) {
			fmt.Fprintln(out, verbFor(item, "removed"), item)
		}
	}
	switch {
	case err != nil:
		return err
	case len(left) > 0:
		return exitError{exitProblems, fmt.Errorf("cleaning up: still there: %s", strings.Join(left, ", "))}
	case len(unknown) > 0:
		return exitError{exitProblems, fmt.Errorf("cleaning up: %s", unknownSysctls(unknown))}
	}
	_, err = fmt.Fprintln(out, "nothing of eipnet is left")
	return err
}

// printDryRun prints what cleanup would do, and why it would refuse.
func printDryRun(out io.Writer, items, unknown []string, running error, used []string) {
	for _, item := range items {
		fmt.Fprintln(out, "would", verbFor(item, "remove"), item)
	}
	if len(items) == 0 {
		fmt.Fprintln(out, "nothing of eipnet is there")
	}
	if len(unknown) > 0 {
		fmt.Fprintln(out, "#", unknownSysctls(unknown))
	}
	if running != nil {
		fmt.Fprintln(out, "# cleanup would refuse:", running)
	}
	if len(used) > 0 {
		fmt.Fprintln(out, "# cleanup would refuse without --force, as these are in use:", strings.Join(used, ", "))
	}
}

// unknownSysctls says which sysctls cannot be put back.
func unknownSysctls(list []string) string {
	return "what the sysctls were before is not known, as the state file is lost; all else of eipnet is removed, and these, which have the values that eipnet gives them, stay: " +
		strings.Join(list, ", ") + "; put back by hand what was otherwise (a reboot does, too)"
}

// verbFor says what is done to a thing that is listed: what the host had before
// eipnet is put back, all else removed, in the form that is given.
func verbFor(item, remove string) string {
	if strings.HasPrefix(item, "sysctl ") || strings.HasPrefix(item, "group ") {
		return "put back"
	}
	return remove
}

// leftovers are the hands that cleanup looks and removes with.
type leftovers struct {
	o       cleanupOptions
	bridges []string // of networks
	links   *host.Host
	router  *route.Manager
	tables  *snat.Tables
	accepts *snat.DockerUser
}

func openLeftovers(ctx context.Context, o cleanupOptions, m *memory) (*leftovers, error) {
	l := &leftovers{o: o}
	for _, n := range m.networks {
		l.bridges = append(l.bridges, n.Bridge)
	}
	var err error
	if l.tables, err = snat.NewTables(0); err != nil {
		return nil, err
	}
	if l.accepts, err = snat.NewDockerUser(ctx, o.log); err != nil {
		return nil, err
	}
	if l.router, err = route.New(route.Options{Log: o.log}); err != nil {
		return nil, err
	}
	if l.links, err = host.New(host.Options{Log: o.log, Originals: m.originals}); err != nil {
		l.router.Close()
		return nil, err
	}
	return l, nil
}

func (l *leftovers) close() {
	l.links.Close()
	l.router.Close()
}

// list describes everything of ours that is there.
func (l *leftovers) list(ctx context.Context) ([]string, error) {
	rules, err1 := l.router.List(ctx)
	links, err2 := l.links.List(ctx)
	accepts, err3 := l.accepts.Left(ctx)
	tables, err4 := l.tables.List()
	files, err5 := l.files()
	items := slices.Concat(rules, links, accepts)
	for _, t := range tables {
		items = append(items, t.String())
	}
	for _, f := range files {
		items = append(items, "file "+f)
	}
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return items, fmt.Errorf("looking for what is eipnet's: %w", err)
	}
	return items, nil
}

// remove takes everything away, in an order in which no packet leaves by a
// wrong NIC meanwhile: the guard goes last, when no connection is left that a
// pin gave its address to.
func (l *leftovers) remove(ctx context.Context) error {
	err := errors.Join(l.router.Remove(ctx), l.links.RemoveAll(ctx))
	pinned, flushErr := l.tables.Pinned()
	if flushErr == nil {
		_, flushErr = l.links.FlushConntrack(ctx, pinned)
	}
	if flushErr != nil {
		return errors.Join(err, fmt.Errorf("the tables stay, as connections of pinned containers could not be ended: %w", flushErr))
	}
	_, acceptsErr := l.accepts.Apply(ctx, nil)
	// What firewalld knows of bridges that are gone does no harm.
	if err := firewalld.Forget(ctx, filepath.Join("/", firewalld.Socket), l.bridges); err != nil {
		l.o.log.Warn("firewalld still knows of bridges that are gone, until it is reloaded", slog.Any("err", err))
	}
	if err = errors.Join(err, acceptsErr, l.tables.Remove(ctx)); err != nil {
		return err // what the host was like is needed once more
	}
	files, err := l.files()
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	for _, dir := range []string{l.o.stateDir, filepath.Dir(l.o.apiSocket)} {
		_ = os.Remove(dir) // stays if something of somebody else's is in it
	}
	return err
}
