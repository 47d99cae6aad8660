// Command demo shows what eipnet does: it brings up a simulated cloud with a
// real Docker Engine, pins two containers to two NICs, asks each of their
// public addresses, and cleans up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

func main() {
	lab.Init()
	binary := flag.String("eipnet", "bin/eipnet", "the eipnet to show")
	engine := flag.String("engine", "28.5", "Docker Engine: "+strings.Join(lab.Engines(), ", "))
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, *binary, *engine)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, binary, engine string) error {
	say("A cloud server with three NICs, each with its own public address, and Docker %s.", engine)
	say("(The first time this builds the engine's root from Debian packages: a minute or two.)\n")
	l, err := lab.New(ctx, lab.Config{Engine: engine, Log: func(format string, args ...any) { say("  "+format, args...) }})
	if err == nil {
		err = show(ctx, l, binary)
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted") // whatever that was in the middle of
	}
	if l != nil {
		err = errors.Join(err, l.Close())
	}
	return err
}

// show runs eipnet and two containers in the lab.
func show(ctx context.Context, l *lab.Lab, binary string) error {
	if err := l.BuildImage(ctx); err != nil {
		return err
	}
	if err := l.Host.Install(binary, "eipnet"); err != nil {
		return err
	}
	serve := []string{"serve"}
	for _, n := range l.NICs() {
		say("  %s  %-15v EIP %v", n.Name, n.Addr.Addr(), n.EIP)
		serve = append(serve, "--eip", fmt.Sprintf("%v=%v", n.EIP, n.Addr.Addr()))
	}
	say("\n$ eipnet serve &")
	if _, err := l.Host.Start("eipnet", serve...); err != nil {
		return err
	}
	if err := until(ctx, func() error {
		_, err := l.Host.Run(ctx, "eipnet", "status")
		return err
	}); err != nil {
		return fmt.Errorf("starting eipnet: %w", err)
	}
	for _, args := range [][]string{
		{"network", "create", "-d", "eipnet", "--subnet", "172.19.0.0/16", "-o", "com.docker.network.bridge.name=eip_bridge", "eip_bridge"},
		{"run", "-d", "--name", "app0", "--network", "eip_bridge", "--ip", "172.19.0.100", "--label", "eip.nic=eth0", "-p", "8090:8080", lab.Image},
		{"run", "-d", "--name", "app1", "--network", "eip_bridge", "--ip", "172.19.0.101", "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image},
	} {
		say("$ docker %s", strings.Join(args, " "))
		if _, err := l.Docker(ctx, args...); err != nil {
			return err
		}
	}
	say("\nFrom the Internet; the program answers with the address that the site sees it come from:")
	for _, nic := range []string{"eth0", "eth1"} {
		if err := ask(ctx, l, nic); err != nil {
			return err
		}
	}
	foreign, err := l.Foreign(ctx)
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		return fmt.Errorf("packets left by a wrong NIC: %v", foreign)
	}
	say("\nPackets that left a NIC with a source that is not its own: 0")
	say("\n$ eipnet status")
	out, err := l.Host.Run(ctx, "eipnet", "status")
	say("%s", out)
	return err
}

// ask fetches a NIC's public address, and insists on the answer.
func ask(ctx context.Context, l *lab.Lab, nic string) error {
	url := fmt.Sprintf("http://%v:8090/", l.EIP(nic))
	var got string
	err := until(ctx, func() (err error) {
		got, err = l.SiteGet(ctx, url)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	say("$ curl %s\n%s", url, strings.TrimSpace(got))
	if strings.TrimSpace(got) != l.EIP(nic).String() {
		return fmt.Errorf("%s answered %q, want %v", url, got, l.EIP(nic))
	}
	return nil
}

// until tries until there is no error, ten seconds at most.
func until(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
