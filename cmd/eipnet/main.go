// Command eipnet pins Docker containers to the NICs of a host that has several.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/internal/nsexec"
)

// version is set by the linker.
var version = "dev"

// Exit codes, as the help of the root command lists them.
const (
	exitFailure    = 1
	exitProblems   = 2
	exitNotRunning = 3
)

// exitError carries an exit code; its text, if any, is printed.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e exitError) Unwrap() error { return e.err }

func main() {
	if len(os.Args) == 2 && os.Args[1] == nsexec.InitCommand {
		os.Exit(nsexec.Init())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, err := root().ExecuteContextC(ctx)
	if err == nil {
		return
	}
	code, err := failure(cmd, err)
	if err != nil {
		fmt.Fprintln(os.Stderr, "eipnet:", err)
	}
	stop()
	os.Exit(code) //nolint:gocritic // the deferred stop has run
}

// failure is the exit code of a command that failed, and what to print, if anything.
func failure(cmd *cobra.Command, err error) (int, error) {
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code, e.err
	}
	if cmd.Name() == execName {
		return nsexec.ExitFailed, err // the other codes are the program's
	}
	return exitFailure, err
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "eipnet",
		Version: version,
		Short:   "Pin Docker containers to one NIC of a host that has several",
		Long: `eipnet makes a container live on one NIC of a server that has several, each
with its own public address: what comes in by that NIC's address reaches the
container, and what the container sends leaves by that NIC with that address,
or does not leave at all.

  docker network create -d eipnet --subnet 172.19.0.0/16 eip
  docker run -d --network eip --label eip.nic=eth1 -p 8090:8080 IMAGE

Every flag can also be given as an environment variable: --state-dir is
EIPNET_STATE_DIR.

Exit codes: 0 all is well, 1 the command failed, 2 it worked and there are
problems to look at, 3 the daemon is not running.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return flagsFromEnv(cmd.Flags())
		},
	}
	cmd.AddCommand(serveCommand(), statusCommand(), rebindCommand(), cleanupCommand(), execCommand(), hostCommand(), restoreCommand(), versionCommand(), manCommand())
	cmd.SetVersionTemplate("eipnet {{.Version}}\n") // as the command has it
	cmd.InitDefaultCompletionCmd()
	for _, c := range cmd.Commands() {
		if c.HasSubCommands() {
			group(c)
		}
	}
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "eipnet", version)
			return err
		},
	}
}
