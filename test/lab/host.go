package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the machine with several NICs: namespaces of its own (network, mounts, processes, IPC, host
// name) behind one holder process.
type Host struct {
	lab    *Lab
	ns     *netNS
	pid    int // the holder's
	stop   func() error
	mu     sync.Mutex
	active []*Process
}

// holderTimeout bounds the holder's mounts.
const holderTimeout = 30 * time.Second

// startHost starts the holder. It is started from, and lives no longer than, a locked thread: the kernel
// ties the parent-death signal to the thread that forked.
func startHost(l *Lab, root string) (*Host, error) {
	cgroups, err := cgroupSource(l.cfg.Unified)
	if err != nil {
		return nil, err
	}
	spec := holderSpec{Dir: l.dir, Root: root, DNS: SiteAddr.String(), Cgroups: cgroups, Unified: l.cfg.Unified}
	for _, dir := range spec.folders() {
		if err := os.MkdirAll(filepath.Join(l.dir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("making the lab's folders: %w", err)
		}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("writing the holder's orders: %w", err)
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer readyR.Close()
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a pipe: %w", err), readyW.Close())
	}
	var log bytes.Buffer
	cmd := &exec.Cmd{
		Path: "/proc/self/exe",
		// A test binary that forgot to call Init runs no test with these, and ends at once.
		Args:       []string{"eipnet-lab-host", "-test.run=^$"},
		Env:        append(os.Environ(), initEnv+"="+string(text)),
		Stdout:     &log,
		Stderr:     &log,
		ExtraFiles: []*os.File{readyW, lifeR},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			Pdeathsig:  unix.SIGKILL,
			Setsid:     true,
		},
	}
	started, exited, end := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: see above
		defer close(exited)
		err := cmd.Start()
		started <- err
		readyW.Close()
		lifeR.Close()
		if err != nil {
			return
		}
		waited := make(chan struct{})
		go func() { _ = cmd.Wait(); close(waited) }() // it is killed: its exit status says nothing
		select {
		case <-end:
			_ = cmd.Process.Kill()
		case <-waited:
		}
		<-waited
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("starting the holder: %w", err), lifeW.Close())
	}
	stop := sync.OnceValue(func() error {
		close(end)
		<-exited
		return lifeW.Close()
	})
	_ = readyR.SetReadDeadline(time.Now().Add(holderTimeout))
	answer, err := io.ReadAll(readyR)
	if err != nil || string(answer) != holderOK {
		serr := stop()
		return nil, errors.Join(fmt.Errorf("setting up the holder (does TestMain or main call lab.Init?): %s %s", answer, log.String()), err, serr)
	}
	ns, err := netNSOf("host", cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &Host{lab: l, ns: ns, pid: cmd.Process.Pid, stop: stop}, nil
}

// PID is the holder's process ID on the machine: nsenter's target.
func (h *Host) PID() int { return h.pid }

// Path is where the machine finds a file of the host. Symbolic links with an absolute target are
// followed on the machine's side, so name files by their real path (/run, not /var/run).
func (h *Host) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(h.pid), "root", path)
}

// Do runs fn on a thread in the host's network namespace.
func (h *Host) Do(fn func() error) error { return h.ns.Do(fn) }

// Sysctl writes a setting of the host, with dots as sysctl(8) has it.
func (h *Host) Sysctl(key, value string) error { return h.ns.sysctl(key, value) }

// Command prepares a command on the host: its files, network and processes. When ctx ends, the program
// itself is killed and not only nsenter in front of it. cmd.Env may be added to.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := append([]string{"--target", strconv.Itoa(h.pid), "--mount", "--net", "--pid", "--uts", "--ipc", "--", name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", enter...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "DOCKER_CLI_HINTS=false"}
	cmd.Dir = "/"
	cmd.Cancel = func() error { return signalEntered(cmd.Process, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a command on the host and returns what it printed; an error has its standard error.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return runCmd(h.Command(ctx, name, args...), name, args)
}

// RunInput is Run with a standard input.
func (h *Host) RunInput(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	cmd := h.Command(ctx, name, args...)
	cmd.Stdin = stdin
	return runCmd(cmd, name, args)
}

func runCmd(cmd *exec.Cmd, name string, args []string) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Install copies a program to the host's /usr/local/bin.
func (h *Host) Install(path, name string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	return h.WriteFile("/usr/local/bin/"+name, data, 0o755)
}

// WriteFile writes a file of the host, and the folders above it. It replaces a file that is in use.
func (h *Host) WriteFile(path string, data []byte, mode os.FileMode) error {
	target := h.Path(path)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("making the folder of %s: %w", path, err)
	}
	part := target + ".part"
	if err := os.WriteFile(part, data, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := errors.Join(os.Chmod(part, mode), os.Rename(part, target)); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
