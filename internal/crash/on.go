//go:build crashpoints

// Package crash, in a program that can be told behind which write to die.
package crash

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// Env says at which point the process dies; 0 or nothing: at none.
const Env = "CRASHPOINT"

var (
	passed atomic.Int64
	last   = point()
)

func point() int64 {
	n, err := strconv.ParseInt(os.Getenv(Env), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Point tells of each write, numbered, and kills the process behind the one that was asked for.
func Point(what string) {
	n := passed.Add(1)
	fmt.Fprintf(os.Stderr, "crashpoint %d: %s\n", n, what)
	if n == last {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it comes in a moment
	}
}
