package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// pace is a loop that passes at once, or, when stuck, never.
type pace struct{ stuck bool }

func (p pace) Last(context.Context) (*reconcile.Result, error) {
	return &reconcile.Result{Networks: make([]model.Network, 2), Problems: make([]model.Problem, 1)}, nil
}

func (p pace) Sync(ctx context.Context, _ ...string) error {
	if !p.stuck {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// TestTellSystemd: the loop is vouched for as long as it passes, and not when it hangs.
func TestTellSystemd(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "notify")
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", path)
		t.Setenv("WATCHDOG_USEC", "100000")
		want, limit := []string{"STATUS=2 networks, 0 endpoints, 1 problems"}, 500*time.Millisecond
		if !stuck {
			want, limit = append(want, daemon.SdNotifyWatchdog), 20*time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		told := make(chan []string, 1)
		go func() { // at once: the socket's queue is short
			var got []string
			buf := make([]byte, 1024)
			for n, err := socket.Read(buf); err == nil; n, err = socket.Read(buf) {
				got = append(got, string(buf[:n]))
				if got[len(got)-1] == daemon.SdNotifyWatchdog {
					cancel()
				}
			}
			told <- got
		}()
		if err := tellSystemd(ctx, pace{stuck}, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
		cancel()
		if err := socket.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		got := <-told
		socket.Close()
		if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
			t.Errorf("stuck %v (-want +got):\n%s", stuck, diff)
		}
	}
}
