// Package delay waits.
package delay

import (
	"context"
	"time"
)

// For waits and reports whether it was not cancelled.
func For(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
