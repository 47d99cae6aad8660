package nsexec

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ordersFD is where init reads: a line with the Spec, then a byte for each
// signal that is to be passed on. Its end is the keeper's end.
const ordersFD = 3

// Init is the life of init. It returns the exit code of the process.
func Init() int {
	// init ignores what it has no handler for, and Go's would end it. What is
	// notified is the default again in the program.
	signals := make(chan os.Signal, 1)
	for _, s := range passedOn {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	go func() {
		for range signals { //nolint:revive // the keeper passes on what counts
		}
	}()
	unix.CloseOnExec(ordersFD)
	orders := bufio.NewReader(os.NewFile(ordersFD, "orders"))
	line, err := orders.ReadBytes('\n')
	if err != nil {
		return ExitFailed // the keeper has said why
	}
	var spec Spec
	if err := json.Unmarshal(line, &spec); err != nil {
		return say(ExitFailed, err)
	}
	if err := mounts(spec.ResolvConf); err != nil {
		return say(ExitFailed, err)
	}
	pid, code, err := start(spec)
	if err != nil {
		return say(code, err)
	}
	go func() {
		for {
			n, err := orders.ReadByte()
			if err != nil {
				os.Exit(ExitFailed) // the keeper is gone
			}
			_ = unix.Kill(pid, syscall.Signal(n))
		}
	}()
	return reap(pid)
}

func say(code int, err error) int {
	fmt.Fprintln(os.Stderr, "eipnet exec:", err)
	return code
}

// start starts the program. The code is for the error.
func start(spec Spec) (pid, code int, err error) {
	path, err := exec.LookPath(spec.Args[0])
	if errors.Is(err, fs.ErrPermission) {
		return 0, ExitCannotRun, err
	}
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return 0, ExitNotFound, err
	}
	attr := &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{}}
	if u := spec.User; u != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	p, err := os.StartProcess(path, spec.Args, attr)
	if err != nil {
		return 0, ExitCannotRun, err
	}
	return p.Pid, 0, nil
}

// reap waits for the program, and for whatever was left to init meanwhile.
func reap(program int) int {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return say(ExitFailed, fmt.Errorf("waiting for the program: %w", err))
		}
		if pid == program {
			return exitCode(syscall.WaitStatus(status))
		}
	}
}

// resolvers are folders with sockets of programs of the host that look names up
// for others, by the host's routing: the program must not find them.
var resolvers = []string{"/run/systemd/resolve", "/run/nscd", "/var/run/nscd"}

// mounts gives the program its own /proc and resolv.conf. Nothing of it is seen
// outside of this mount namespace; what the host mounts later is seen here.
func mounts(resolvConf string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making mounts our own: %w", err)
	}
	conf, err := filepath.EvalSymlinks("/etc/resolv.conf")
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("looking for /etc/resolv.conf: %w", err)
	}
	hidden := ""
	for _, dir := range resolvers {
		if real, err := filepath.EvalSymlinks(dir); err == nil && real == dir {
			if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
				return fmt.Errorf("hiding %s: %w", dir, err)
			}
			if strings.HasPrefix(conf, dir+"/") {
				hidden = conf
			}
		}
	}
	switch {
	case missing || resolvConf == "":
	case hidden != "": // in a folder that is empty now, and ours
		if err := os.WriteFile(hidden, []byte(resolvConf), 0o644); err != nil {
			return fmt.Errorf("writing the program's resolv.conf: %w", err)
		}
	default:
		if err := cover(conf, resolvConf); err != nil {
			return fmt.Errorf("giving the program its resolv.conf: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	return nil
}

// cover puts a file of ours in the place of another one. It is on a file system
// that is nowhere else: mounted over /proc, which gets its own afterwards.
func cover(path, text string) error {
	if err := unix.Mount("tmpfs", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	const ours = "/proc/resolv.conf"
	err := os.WriteFile(ours, []byte(text), 0o644)
	if err == nil {
		err = unix.Mount(ours, path, "", unix.MS_BIND, "")
	}
	return errors.Join(err, unix.Unmount("/proc", unix.MNT_DETACH))
}
