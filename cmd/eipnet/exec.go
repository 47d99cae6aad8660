package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/nsexec"
)

const execName = "exec"

type execFlags struct {
	socket, nic, name, user, as string
	publish, dns                []string
}

func execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   execName + " {--nic NIC [-p HOSTPORT:PORT] | --as NAME} [flags] -- COMMAND [ARG...]",
		Short: "Run a program of the host on one NIC",
		Long: `Run an unchanged program on one NIC: what it sends leaves by that NIC with that
NIC's address, name look-ups too, and with -p it is reached on that NIC's address.
It runs in a network namespace of its own, on a bridge of eipnet's, and is an
endpoint like a container: it is held where its NIC is gone, and "eipnet status"
shows it. It has the host's files, and the caller's environment, terminal and
working directory; signals are passed on. What it leaves running ends with it.

Exit codes: the program's own, 128 and the signal's number if one ended it,
125 if eipnet could not start it, 126 and 127 if it cannot be run or found.`,
		Example: `  sudo eipnet exec --nic eth1 -- curl https://ifconfig.me
  sudo eipnet exec --nic eth1 -p 8090:8090 --user www-data -- ./server --addr :8090`,
		Args: atLeast("COMMAND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := f.run(cmd.Context(), args)
			if code != 0 || err != nil {
				return exitError{code, err}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.StringVar(&f.nic, "nic", "", "the `NIC`, by name, address, EIP (one that serve --eip maps) or MAC address")
	fs.StringVar(&f.as, "as", "", "the `name` of a host entry (eipnet host add) whose NIC and ports the program has, in place of --nic and -p")
	fs.StringSliceVarP(&f.publish, "publish", "p", nil, "publish a port of the program, as `[ADDRESS:]HOSTPORT:PORT[/udp]`; without an address on the NIC's")
	fs.StringVar(&f.name, "name", "", "`name` in status; without it the command's and some letters")
	fs.StringVar(&f.user, "user", "", "run it as this `user`, by name or number, with :group if you like")
	fs.StringSliceVar(&f.dns, "dns", nil, "name `servers` in place of those of /etc/resolv.conf")
	fs.StringVar(&f.socket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	return cmd
}

func (f *execFlags) run(ctx context.Context, args []string) (int, error) {
	if os.Geteuid() != 0 {
		return nsexec.ExitFailed, errors.New("exec makes namespaces and needs root; try: sudo eipnet exec …, with --user for the program")
	}
	p, spec, err := f.parse(args)
	if err != nil {
		return nsexec.ExitFailed, err
	}
	client := api.NewClient(f.socket)
	// Before the daemon is asked: one that comes as it answers ends ctx too late.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	// The connection that holds the endpoint lasts as long as its context: a
	// signal ends that only until the daemon has answered.
	attaching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	uncancel := context.AfterFunc(ctx, cancel)
	held, err := client.Attach(attaching, p)
	if err != nil {
		return nsexec.ExitFailed, err
	}
	if !uncancel() {
		held.Close()
		return nsexec.ExitFailed, errors.Join(ctx.Err(), detach(client, held.ID))
	}
	// From here on signals are the program's, or end the command before there is one.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	holding := make(chan struct{})
	go func() {
		defer close(holding)
		hold(ctx, client, held)
	}()
	code, err := nsexec.Run(spec, held.Attachment, signals)
	stop()
	<-holding
	return code, errors.Join(err, detach(client, held.ID))
}

// parse turns flags into what is asked of the daemon, and of the namespace.
func (f *execFlags) parse(args []string) (model.Program, nsexec.Spec, error) {
	p, spec := model.Program{Name: f.name}, nsexec.Spec{Args: args}
	fail := func(err error) (model.Program, nsexec.Spec, error) { return p, spec, err }
	var err error
	switch {
	case f.as == "":
		if p.Options, err = model.SelectNIC(f.nic); err != nil {
			return fail(fmt.Errorf("--nic: %w", err))
		}
	case f.nic != "" || len(f.publish) > 0:
		return fail(errors.New("--as: the host entry says which NIC and which ports; leave --nic and -p out"))
	}
	p.As = f.as
	if p.Name == "" {
		p.Name = filepath.Base(args[0]) + "-" + strings.ToLower(rand.Text()[:6])
	}
	if p.Publishes, err = model.ParsePublishes(f.publish); err != nil {
		return fail(fmt.Errorf("-p: %w", err))
	}
	for _, s := range f.dns {
		if _, err := netip.ParseAddr(s); err != nil {
			return fail(fmt.Errorf("--dns %q: want an address", s))
		}
	}
	if f.user != "" {
		if spec.User, err = nsexec.ParseUser(f.user); err != nil {
			return fail(fmt.Errorf("--user: %w", err))
		}
	}
	own, err := nsexec.OwnAddrs()
	if err != nil {
		return fail(err)
	}
	conf, err := nsexec.HostResolvConf(own)
	if err != nil {
		return fail(err)
	}
	text, local := nsexec.ResolvConf(conf, f.dns, own)
	if local {
		fmt.Fprintln(os.Stderr, "eipnet exec: all name servers are on this host, and would ask by the host's routing; the program finds no names without --dns")
	}
	spec.ResolvConf = text
	return p, spec, nil
}

const (
	resumeInterval = 200 * time.Millisecond
	detachTimeout  = 10 * time.Second
)

// hold keeps the endpoint until ctx ends: when the daemon is started anew it
// takes hold again.
func hold(ctx context.Context, client *api.Client, held *api.Held) {
	stop := context.AfterFunc(ctx, held.Close)
	held.Lost()
	stop()
	for ctx.Err() == nil {
		again, err := client.Hold(ctx, held.Attachment)
		switch {
		case err == nil:
			hold(ctx, client, again)
			return
		case errors.Is(err, api.ErrNoProgram):
			fmt.Fprintln(os.Stderr, "eipnet exec: the daemon has removed the program's endpoint: it reaches nothing any more; start it again")
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(resumeInterval):
		}
	}
}

// detach removes the endpoint, so that its ports are free when the command has
// ended. A daemon that is away does it when it is back.
func detach(client *api.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	err := client.Detach(ctx, id)
	if errors.Is(err, api.ErrNotRunning) {
		return nil
	}
	return err
}
