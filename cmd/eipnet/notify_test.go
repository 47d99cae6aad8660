package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

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
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if err := tellSystemd(ctx, pace{stuck}, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
		cancel()
		var got []string
		buf := make([]byte, 1024)
		for {
			if err := socket.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, err := socket.Read(buf)
			if err != nil {
				break
			}
			got = append(got, string(buf[:n]))
		}
		socket.Close()
		want := []string{"STATUS=2 networks, 0 endpoints, 1 problems"}
		if !stuck {
			want = append(want, "WATCHDOG=1")
		}
		if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
			t.Errorf("stuck %v (-want +got):\n%s", stuck, diff)
		}
	}
}
