package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Systemd is a system manager on the host, as process 1 of a PID namespace of
// its own below the host's. It has the host's files and network, and a cgroup
// tree that nobody else uses.
type Systemd struct {
	lab  *Lab
	main *Process
	pid  string // in the host's PID namespace
}

const systemdProgram = "/usr/lib/systemd/systemd"

// bootScript makes a cgroup for systemd, which has to be the root of what it
// sees, and boots it. Docker's socket is the lab's, and not to be replaced.
const bootScript = `set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup$1"
echo 0 >"/sys/fs/cgroup$1/cgroup.procs"
ln -sf /dev/null /etc/systemd/system/docker.socket
exec unshare --cgroup --mount --pid --fork --mount-proc --kill-child sh -ec '
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	: >/run/console
	mount --bind /run/console /dev/console
	exec env container=lab ` + systemdProgram + ` --system --unit=basic.target --log-target=console'`

const removeScript = `mount --make-rprivate / && mount -t cgroup2 cgroup2 /sys/fs/cgroup && cd /sys/fs/cgroup || exit
find ".$1" -depth -type d -exec rmdir {} \;`

// BootSystemd boots the systemd of the engine's root and waits until it is up.
// The caller has to call Close.
func (l *Lab) BootSystemd(ctx context.Context) (*Systemd, error) {
	main, err := l.Host.Start("unshare", "--mount", "sh", "-c", bootScript, "sh", l.cgroup()+"/systemd")
	if err != nil {
		return nil, fmt.Errorf("booting systemd: %w", err)
	}
	s := &Systemd{lab: l, main: main}
	if err := s.wait(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("booting systemd: %w: %s", err, main.Tail(20)), s.Close(ctx))
	}
	return s, nil
}

func (s *Systemd) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	for {
		var state string
		pid, err := s.lab.Host.Run(ctx, "pgrep", "-x", "systemd")
		if err == nil {
			s.pid = strings.TrimSpace(pid)
			state, err = s.Run(ctx, "systemctl", "is-system-running")
		}
		// Degraded: some unit of the Debian root does not start here; not one of ours.
		if state = strings.TrimSpace(state); state == "running" || state == "degraded" {
			return nil
		}
		select {
		case <-s.main.Done():
			return errors.Join(errors.New("it ended"), s.main.Err())
		case <-ctx.Done():
			return fmt.Errorf("it is %q: %w (last: %w)", state, ctx.Err(), err)
		case <-time.After(enginePoll):
		}
	}
}

// Run runs a command where systemd is.
func (s *Systemd) Run(ctx context.Context, name string, args ...string) (string, error) {
	enter := append([]string{"--target", s.pid, "--mount", "--pid", "--cgroup", "--", name}, args...)
	return s.lab.Host.Run(ctx, "nsenter", enter...)
}

// Close kills systemd with all that it started, and removes their cgroups.
func (s *Systemd) Close(ctx context.Context) error {
	err := s.main.Stop(ctx, unix.SIGKILL)
	_, err2 := s.lab.Host.Run(ctx, "unshare", "--mount", "sh", "-c", removeScript, "sh", s.lab.cgroup())
	return errors.Join(err, err2)
}
