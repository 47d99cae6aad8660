package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// engineTimeout bounds the engine's start and its stop.
const engineTimeout = 60 * time.Second

// enginePoll is how often a starting engine is asked whether it is ready.
const enginePoll = 20 * time.Millisecond

// DockerSocket is the engine's socket as the host names it.
const DockerSocket = "/run/docker.sock"

// DockerHost is the engine's address for a client in this process (and for any process of the machine).
func (l *Lab) DockerHost() string { return "unix://" + l.Host.Path(DockerSocket) }

// StartEngine starts the engine and waits until it answers.
func (l *Lab) StartEngine(ctx context.Context) error {
	if l.cfg.Engine == "" {
		return errors.New("starting the engine: this lab has none")
	}
	if l.engine != nil {
		select {
		case <-l.engine.Done():
		default:
			return errors.New("starting the engine: it runs already")
		}
	}
	args := append([]string{
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", l.cgroup(),
	}, l.cfg.DockerdArgs...)
	p, err := l.Host.Start("dockerd", args...)
	if err != nil {
		return fmt.Errorf("starting the engine: %w", err)
	}
	l.engine = p
	if err := l.waitEngine(ctx); err != nil {
		return fmt.Errorf("starting the engine: %w:\n%s", err, p.Tail(30))
	}
	return nil
}

func (l *Lab) waitEngine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	for {
		err := l.pingEngine(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-l.engine.Done():
			return errors.Join(errors.New("it ended"), l.engine.Err())
		case <-ctx.Done():
			return fmt.Errorf("waiting for its answer: %w (last: %w)", ctx.Err(), err)
		case <-time.After(enginePoll):
		}
	}
}

func (l *Lab) pingEngine(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.Host.Path(DockerSocket))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %w", resp.Status, body, err)
	}
	return nil
}

// StopEngine stops the engine with a signal (SIGTERM as systemd does, SIGKILL as a crash does) and waits
// for its end.
func (l *Lab) StopEngine(ctx context.Context, sig syscall.Signal) error {
	if l.engine == nil {
		return errors.New("stopping the engine: it was never started")
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	return l.engine.Stop(ctx, sig)
}

// RestartEngine stops the engine with SIGTERM and starts it again.
func (l *Lab) RestartEngine(ctx context.Context) error {
	if err := l.StopEngine(ctx, unix.SIGTERM); err != nil {
		return err
	}
	return l.StartEngine(ctx)
}

// Engine is the engine's process: its PID, log and end. It is nil when the engine was never started.
func (l *Lab) Engine() *Process { return l.engine }

// Docker runs Docker's command line on the host and returns its output without surrounding space.
func (l *Lab) Docker(ctx context.Context, args ...string) (string, error) {
	out, err := l.Host.Run(ctx, "docker", args...)
	return strings.TrimSpace(out), err
}
