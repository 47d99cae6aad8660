package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a long-lived program on the host. Its output goes to a log file in the lab's folder.
type Process struct {
	Name    string
	LogPath string
	cmd     *exec.Cmd
	pid     int
	done    chan struct{}
	err     error
}

// Start starts a long-lived program on the host; it ends with the lab at the latest.
func (h *Host) Start(name string, args ...string) (*Process, error) {
	return h.StartCmd(h.Command(context.Background(), name, args...), filepath.Base(name))
}

// StartCmd starts a command made by Command (with more environment, say) as a long-lived program. The
// log has the given name and is appended to.
func (h *Host) StartCmd(cmd *exec.Cmd, name string) (*Process, error) {
	p := &Process{Name: name, LogPath: filepath.Join(h.lab.dir, "log", name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.OpenFile(p.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	for p.pid == 0 {
		select {
		case <-p.done:
			return nil, fmt.Errorf("starting %s: it ended at once: %w: %s", name, p.err, p.Log())
		case <-time.After(time.Millisecond):
			p.pid = enteredPID(cmd.Process.Pid)
		}
	}
	h.mu.Lock()
	h.active = append(h.active, p)
	h.mu.Unlock()
	return p, nil
}

// PID is the program's process ID on the machine.
func (p *Process) PID() int { return p.pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the program ended: nil for status 0. It waits for the end.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Log is all that the program has printed.
func (p *Process) Log() string {
	data, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Tail is the last n lines of the log.
func (p *Process) Tail(n int) string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Signal sends a signal to the program itself.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	return signalEntered(p.cmd.Process, sig)
}

// Stop sends a signal and waits until the program has ended; when ctx ends first, it is killed, and that
// is an error.
func (p *Process) Stop(ctx context.Context, sig syscall.Signal) error {
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", p.Name, err)
	}
	killed := context.WithoutCancel(ctx)
	if sig == unix.SIGKILL {
		ctx = killed
	}
	if p.ended(ctx) {
		return nil
	}
	err := p.Signal(unix.SIGKILL)
	p.ended(killed)
	return errors.Join(fmt.Errorf("stopping %s: it did not end by itself: %w", p.Name, ctx.Err()), err)
}

// ended waits for the end of a program that was told to end, or for ctx's; false: it has not ended.
// nsenter stops itself when it notices that its child was stopped, which may be after all signals that it
// was sent: it is told to go on until it ends.
func (p *Process) ended(ctx context.Context) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
			_ = p.cmd.Process.Signal(unix.SIGCONT) // it may have ended
		}
	}
}

// enteredPID is the program behind nsenter, which forks once to enter the PID namespace; 0: not yet.
func enteredPID(nsenter int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nsenter, nsenter))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	return pid
}

// signalTimeout bounds the wait for nsenter's fork.
const signalTimeout = 10 * time.Second

// signalEntered signals the program behind nsenter. nsenter stops itself when its child is stopped, and
// must go on for its child's end to be noticed.
func signalEntered(nsenter *os.Process, sig syscall.Signal) error {
	deadline := time.Now().Add(signalTimeout)
	pid := enteredPID(nsenter.Pid)
	for pid == 0 && time.Now().Before(deadline) {
		if err := nsenter.Signal(unix.Signal(0)); err != nil {
			return err
		}
		<-time.After(time.Millisecond)
		pid = enteredPID(nsenter.Pid)
	}
	if pid == 0 {
		return nsenter.Kill()
	}
	if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %s: %w", sig, err)
	}
	if sig == unix.SIGCONT || sig == unix.SIGKILL {
		return nsenter.Signal(unix.SIGCONT)
	}
	return nil
}
