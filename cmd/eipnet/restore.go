package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/internal/state"
)

func restoreCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Load both locks from the state file, once, and end",
		Long: `Load both locks from the state file, once, and end: for a oneshot at boot, ahead
of docker.service. Whatever becomes of the daemon, what Docker starts on an
eipnet network or a strict one is held then, instead of leaving by the host's
routing. It waits for nothing, asks Docker nothing, and takes nothing away.

Its flags are those of serve that say what is written into the kernel: give both the same.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			return restore(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f.registerKernel(cmd.Flags())
	return cmd
}

// restore makes the pass that a starting daemon makes before Docker answers.
func restore(ctx context.Context, o serveOptions, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("restore changes the host's network and needs root; try: sudo eipnet restore")
	}
	path := filepath.Join(o.stateDir, "state.db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		_, err = fmt.Fprintf(out, "nothing to restore: there is no state file %s\n", path)
		return err
	}
	store, damaged, err := state.Open(path, o.log)
	if locked, is := errors.AsType[*state.LockedError](err); is {
		_, err = fmt.Fprintf(out, "nothing to restore: the daemon runs (process %d)\n", locked.PID)
		return err
	}
	if err != nil {
		return err
	}
	defer store.Close()
	if damaged != nil {
		o.log.Warn("state file damaged or not writable", slog.String("text", damaged.String()))
	}
	hands, err := openAppliers(ctx, o, store, func() {})
	if err != nil {
		return err
	}
	defer hands.close()
	ports := driver.NewReserver(o.log)
	defer ports.Close()
	loop, err := hands.loop(o, store, store.Fresh() || damaged != nil, unserved{reservations{ports}}, silent{}, silent{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	res, err := loop.Last(ctx)
	cancel()
	if err = errors.Join(err, <-ended); err != nil {
		return err
	}
	if res.Err != nil {
		return fmt.Errorf("restoring: %w", res.Err)
	}
	_, err = fmt.Fprintf(out, "restored: %d networks locked\n", len(res.Desired.Firewall.Locked))
	return err
}

// silent is a Docker that has not answered yet, and NICs that nobody has asked.
type silent struct{}

func (silent) View() (reconcile.DockerView, bool) { return reconcile.DockerView{}, false }
func (silent) Problems() []model.Problem          { return nil }

func (silent) Look(context.Context, model.Host, map[string]model.NICID, []string) map[string]model.Health {
	return nil
}

// unserved are reservations without proxies: they would end with this process.
type unserved struct{ reservations }

// Serve does nothing.
func (unserved) Serve() error { return nil }
