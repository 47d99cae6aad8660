package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/events"
	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/health"
	"github.com/eipnet/eipnet/internal/host"
	"github.com/eipnet/eipnet/internal/hosts"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/programs"
	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/internal/state"
	"github.com/eipnet/eipnet/snat"
)

func serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon: Docker network driver and keeper of the rules",
		Long: `Run the daemon. It answers Docker as the network driver "eipnet", and keeps
rules, routes and NAT as the networks, options and labels ask for.

It needs root. It touches only NICs that a pin, an option, a published port or
--nics names. Stopping it leaves everything in place: pinned containers stay pinned.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			o.unknown = unknownVariables(cmd.Flags(), os.Environ())
			return serve(cmd.Context(), o)
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// serve wires the daemon and runs it until ctx ends. Top to bottom:
//
//	state     what was asked for, remembered over restarts
//	appliers  host (links, sysctls), route (rules, tables), snat (marks, NAT, guard)
//	zones     firewalld, where there is one, told of our bridges
//	watcher   Docker: which container an endpoint belongs to, and its labels
//	loop      observe → plan.Compute → apply; the only one that writes the kernel
//	driver    Docker's calls: state the intent, have the loop pass, answer
func serve(ctx context.Context, o serveOptions) error {
	if os.Geteuid() != 0 {
		return errors.New("serve changes the host's network and needs root; try: sudo eipnet serve")
	}
	log := o.log
	store, damaged, err := state.Open(filepath.Join(o.stateDir, "state.db"), log)
	if err != nil {
		return err
	}
	defer store.Close()

	atStart := append(kernelProblem(), o.unknown...)
	if damaged != nil {
		atStart = append(atStart, *damaged)
	}

	var loop *reconcile.Loop
	var entries *hosts.Keeper
	poke := func() { loop.Poke() }

	hands, err := openAppliers(ctx, o, store, poke)
	if err != nil {
		return err
	}
	defer hands.close()
	links, firewall := hands.links, hands.firewall
	watcher := events.New(events.Options{
		Log: log, Host: o.dockerHost, Poke: poke, Urgent: func() { loop.Hurry() },
		Asked: func(id string) bool { _, said := store.Rebind(id); return said },
	})
	ports := driver.NewReserver(o.log)
	defer ports.Close()
	ways := health.New(health.Options{Log: log, Interval: o.probeInterval, Targets: o.probeTargets, Mask: o.settings.Mask, Poke: poke})
	defer ways.Close()
	loop, err = hands.loop(o, store, store.Fresh() || damaged != nil, reservations{ports}, ways, dockerView{watcher, store, atStart, &lost{}, []func() []model.Problem{func() []model.Problem { return entries.Problems() }, hands.zones.Problems}})
	if err != nil {
		return err
	}
	drv := driver.New(driver.Options{Log: log, Store: store, Core: core{loop, o.settings}, Links: veths{links}, Labels: watcher, Programs: o.programs})
	entries = hosts.New(hosts.Options{
		Log: log, Store: store, Core: core{loop, o.settings}, Flush: links.FlushConntrack, Poke: poke, Dir: o.hostDir,
		Seen: func() bool { return watcher.View() != nil },
	})
	keeper := programs.New(programs.Options{Log: log, Driver: drv, LinkThere: linkThere(ctx, loop), Grace: o.collectAfter})

	var pluginSockets []net.Listener
	for _, path := range o.pluginSockets {
		l, err := driver.Listen(path)
		if err != nil {
			return fmt.Errorf("listening for Docker: %w", err)
		}
		defer l.Close()
		pluginSockets = append(pluginSockets, l)
	}
	apiSocket, err := driver.Listen(o.apiSocket)
	if err != nil {
		return fmt.Errorf("listening for the CLI: %w", err)
	}
	defer apiSocket.Close()

	// Docker's calls end first: what they wait for goes on until they are answered.
	g, ctx := errgroup.WithContext(ctx)
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g.Go(func() error {
		return links.Watch(inner, host.Notices{Changed: poke, Turned: func() { loop.Hurry() }, PortUp: watcher.PortUp})
	})
	g.Go(func() error { return firewall.Watch(inner, loop.PokeTables, loop.PokeForwarding) })
	g.Go(func() error { return loop.Run(inner) })
	g.Go(func() error { return watcher.Run(inner) })
	g.Go(func() error { return hands.zones.Run(inner) })
	g.Go(func() error { return tellSystemd(inner, loop, log) })
	g.Go(func() error {
		return (&collector{driver: drv, watcher: watcher, store: store, log: log, after: o.collectAfter}).run(inner)
	})
	g.Go(func() error {
		mux := api.Handler(statusFunc(loop, firewall, watcher, o), loop.Rebind)
		api.HandlePrograms(inner, mux, keeper)
		api.HandleHosts(mux, entries)
		return serveAPI(inner, apiSocket, mux)
	})
	g.Go(func() error { return keeper.Run(inner) })
	g.Go(func() error { return entries.Run(inner) })
	g.Go(func() error {
		defer stop()
		first, err := loop.Last(ctx)
		if err != nil {
			return nil // stopped before it began
		}
		// What could not be applied is held: better answer Docker than let it wait.
		if first.Err != nil {
			log.Error("first pass failed; it is tried again", slog.Any("err", first.Err))
		}
		log.Info("serving", slog.String("version", version), slog.Any("plugin_sockets", o.pluginSockets), slog.String("api_socket", o.apiSocket), slog.Bool("table_owned", firewall.Owned()))
		notify(log, daemon.SdNotifyReady)
		context.AfterFunc(ctx, func() { notify(log, daemon.SdNotifyStopping) })
		return driver.Serve(ctx, drv, pluginSockets...)
	})
	return g.Wait()
}

// linkThere tells of links as the last pass saw them. Before the first one all are there.
func linkThere(ctx context.Context, loop *reconcile.Loop) func(name string) bool {
	return func(name string) bool {
		res, err := loop.Last(ctx)
		return err != nil || slices.Contains(res.Host.Links, name)
	}
}

// serveAPI serves the CLI until ctx ends.
func serveAPI(ctx context.Context, l net.Listener, handler http.Handler) error {
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ConnContext: api.ConnContext}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the API: %w", err)
	}
	return nil
}

func statusFunc(loop *reconcile.Loop, firewall *snat.Manager, watcher *events.Watcher, o serveOptions) api.StatusFunc {
	return func(ctx context.Context) (api.Status, error) {
		res, err := loop.Last(ctx)
		if err != nil {
			return api.Status{}, err
		}
		s := api.Build(res, o.settings)
		s.Version = version
		if v := watcher.View(); v != nil && watcher.Up() && res.Seen {
			s.Docker = v.EngineVersion
		}
		counters, err := firewall.Counters()
		if err != nil {
			o.log.Warn("reading the counters failed", slog.Any("err", err))
		}
		s.Counters = make(map[string]api.Counter, len(counters))
		for name, c := range counters {
			s.Counters[name] = api.Counter{Packets: c.Packets, Bytes: c.Bytes}
		}
		spoofed, err := firewall.Spoofed()
		if err != nil {
			o.log.Warn("reading the anti-spoof counter failed", slog.Any("err", err))
		}
		s.Counters[snat.CounterSpoofed] = api.Counter{Packets: spoofed.Packets, Bytes: spoofed.Bytes}
		return s, nil
	}
}
