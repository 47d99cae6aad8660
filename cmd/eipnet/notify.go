package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/eipnet/eipnet/internal/reconcile"
)

// statusInterval is how often the line of `systemctl status` is looked at
// where there is no watchdog.
const statusInterval = 10 * time.Second

// syncer is the loop as the watchdog sees it.
type syncer interface {
	Sync(ctx context.Context, subjects ...string) error
	Last(ctx context.Context) (*reconcile.Result, error)
}

// tellSystemd keeps systemd informed, if it started us, until ctx ends: one
// line of status, and, where the unit has a watchdog, that the loop still
// passes. A loop that hangs is not vouched for.
func tellSystemd(ctx context.Context, loop syncer, log *slog.Logger) error {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("reading systemd's watchdog failed", slog.Any("err", err))
	}
	every := statusInterval
	if watchdog > 0 {
		every = watchdog / 2
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var said string
	for {
		last, err := loop.Last(ctx)
		if err != nil {
			return nil
		}
		if text := statusLine(last); text != said {
			said = text
			notify(log, "STATUS="+text)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if watchdog > 0 && passes(ctx, loop, every) {
			notify(log, daemon.SdNotifyWatchdog)
		}
	}
}

// passes reports whether the loop ends a pass in time; a pass that fails is one.
func passes(ctx context.Context, loop syncer, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return !errors.Is(loop.Sync(ctx), context.DeadlineExceeded)
}

func statusLine(res *reconcile.Result) string {
	return fmt.Sprintf("%d networks, %d endpoints, %d problems", len(res.Networks), len(res.Endpoints), len(res.Problems))
}

// notify does nothing where systemd did not start us.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd failed", slog.String("state", state), slog.Any("err", err))
	}
}
