package main

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"

	"github.com/eipnet/eipnet/internal/firewalld"
	"github.com/eipnet/eipnet/internal/host"
	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/internal/route"
	"github.com/eipnet/eipnet/internal/state"
	"github.com/eipnet/eipnet/snat"
)

// appliers are what writes the kernel.
type appliers struct {
	links    *host.Host
	router   *route.Manager
	firewall *snat.Manager
	accepts  *snat.DockerUser
	zones    *firewalld.Keeper
}

func openAppliers(ctx context.Context, o serveOptions, store *state.Store, poke func()) (a appliers, err error) {
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.links, err = host.New(host.Options{Log: o.log, Originals: store, Root: o.hostRoot, Gateways: o.gateways, Include: o.included, Exclude: o.excluded, Poke: poke})
	if err != nil {
		return a, err
	}
	if a.router, err = route.New(route.Options{Log: o.log}); err != nil {
		return a, err
	}
	if a.firewall, err = snat.New(snat.Options{Log: o.log, Shared: o.shareTables}); err != nil {
		return a, err
	}
	a.zones = firewalld.New(firewalld.Options{Log: o.log, Socket: filepath.Join(o.hostRoot, firewalld.Socket), Filters: snat.Firewalld, Poke: poke})
	a.accepts, err = snat.NewDockerUser(ctx, o.log)
	return a, err
}

// loop makes the reconciler that works with them.
func (a appliers) loop(o serveOptions, store *state.Store, lost bool, ports reconcile.Ports, ways reconcile.Health, docker reconcile.Docker) (*reconcile.Loop, error) {
	settings := o.settings
	if err := a.noCgroups(); err != nil {
		settings.NoCgroups = err.Error()
	} else {
		settings.Cgroups = true
	}
	o.log.Debug("looked for cgroups", slog.Bool("usable", settings.Cgroups), slog.String("lacking", settings.NoCgroups))
	return reconcile.New(reconcile.Options{
		Log: o.log, Settings: settings,
		Host: a.links, Router: a.router, Firewall: a.firewall, Forwarding: forwarding{a.accepts, a.zones},
		Ports: ports, Store: store, Docker: docker,
		Health: ways, Stay: o.stay, StateLost: lost,
		DeviceErrors: []error{route.ErrDevice},
		Culprit:      func() string { return cmp.Or(a.firewall.Culprit(), a.links.Culprit()) },
	})
}

// noCgroups tells why containers on the host's network cannot be pinned; nil: they can.
func (a appliers) noCgroups() error {
	if err := a.links.NoCgroups(); err != nil {
		return err
	}
	return snat.ProbeCgroups(0)
}

// close releases them in the reverse order. What was applied stays.
func (a appliers) close() {
	if a.firewall != nil {
		_ = a.firewall.Close() // the process ends
	}
	if a.router != nil {
		a.router.Close()
	}
	if a.links != nil {
		a.links.Close()
	}
}
