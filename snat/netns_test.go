package snat

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/netnstest"
)

// namespace is a network namespace in which tests run command lines.
type namespace struct{ netnstest.NS }

// newNamespace makes an empty network namespace, loopback up, for the test's time.
func newNamespace(tb testing.TB) *namespace {
	tb.Helper()
	return &namespace{netnstest.New(tb)}
}

// exec runs a command line, its words split at spaces, in the namespace.
func (ns *namespace) exec(ctx context.Context, stdin, line string) (string, error) {
	var out bytes.Buffer
	var err error
	ns.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		words := strings.Fields(line)
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
		err = cmd.Run()
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", line, err, out.String())
	}
	return out.String(), err
}

// run runs command lines, each of which has to succeed, and returns the last one's output.
func (ns *namespace) run(tb testing.TB, lines ...string) (out string) {
	tb.Helper()
	for _, line := range lines {
		var err error
		if out, err = ns.exec(context.Background(), "", line); err != nil {
			tb.Fatal(err)
		}
	}
	return out
}

// nft loads a ruleset.
func (ns *namespace) nft(tb testing.TB, ruleset string) {
	tb.Helper()
	if _, err := ns.exec(context.Background(), ruleset, "nft -f -"); err != nil {
		tb.Fatal(err)
	}
}
