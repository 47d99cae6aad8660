package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// initEnv carries the holder's orders to the re-executed binary.
const initEnv = "EIPNET_LAB_INIT"

// holderSpec is what the holder is told.
type holderSpec struct {
	Dir     string // the lab's folder
	Root    string // the engine's root, never written to; empty: the machine's own root
	DNS     string
	Cgroups string // what of the machine's the host has as /sys/fs/cgroup
	Unified bool   // that is the hierarchy of cgroups version 2
}

// Descriptors that the holder inherits.
const (
	holderReady = 3 // it says here how the set-up went
	holderLife  = 4 // ends when the process that made the lab is gone
)

// holderOK is what the holder says when all is set up; everything else is an error's text.
const holderOK = "ok"

// Init turns the process into a lab's holder when it was started as one, and never returns then.
// Otherwise it does nothing. Call it first thing in main or TestMain.
func Init() {
	spec, ok := os.LookupEnv(initEnv)
	if !ok {
		return
	}
	os.Unsetenv(initEnv)
	os.Exit(hold(spec))
}

// hold is init of the host's PID namespace: when it dies, everything in the host dies.
func hold(spec string) int {
	ready := os.NewFile(holderReady, "ready")
	var s holderSpec
	err := json.Unmarshal([]byte(spec), &s)
	if err == nil {
		err = s.setUp()
	}
	if err != nil {
		fmt.Fprint(ready, err)
		ready.Close()
		return 1
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	fmt.Fprint(ready, holderOK)
	ready.Close()

	go func() {
		for range children {
			for {
				pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
				if pid <= 0 && !errors.Is(err, unix.EINTR) {
					break
				}
			}
		}
	}()
	_, _ = io.Copy(io.Discard, os.NewFile(holderLife, "life"))
	return 0
}

type mountStep struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// setUp makes the host's view of the file system. All mounts are in the holder's own mount namespace,
// which was private before the first of them.
func (s holderSpec) setUp() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte("lab-host")); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	steps, root := s.machineRoot()
	if s.Root != "" {
		steps, root = s.engineRoot()
	}
	cgroups := filepath.Join(s.Dir, "cgroup")
	const noDev = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps = append([]mountStep{{s.Cgroups, cgroups, "", unix.MS_BIND | unix.MS_REC, ""}}, steps...)
	steps = append(steps,
		mountStep{"proc", filepath.Join(root, "proc"), "proc", noDev, ""},
		mountStep{"sysfs", filepath.Join(root, "sys"), "sysfs", noDev, ""},
		mountStep{cgroups, filepath.Join(root, "sys/fs/cgroup"), "", unix.MS_BIND | unix.MS_REC, ""},
		mountStep{"tmpfs", filepath.Join(root, "run"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	)
	for _, m := range steps {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("making mount point %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.source, m.target, err)
		}
	}
	if err := unix.Unmount(cgroups, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", cgroups, err)
	}
	if s.Unified {
		if err := keepControllers(filepath.Join(root, "sys/fs/cgroup")); err != nil {
			return err
		}
	}
	if s.Root != "" {
		if err := pivot(root); err != nil {
			return err
		}
	}
	// Shared among themselves, as on a host with systemd; nothing leaves this namespace.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making mounts shared: %w", err)
	}
	return s.files()
}

// enabledControllers is the file of a cgroup that says which controllers those below it have.
const enabledControllers = "cgroup.subtree_control"

// keepControllers keeps runc from enabling controllers for all cgroups of the machine, which it would
// leave so. It goes on without.
func keepControllers(root string) error {
	file := filepath.Join(root, enabledControllers)
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
		if err := unix.Mount(file, file, "", flags, ""); err != nil {
			return fmt.Errorf("making %s read-only: %w", file, err)
		}
	}
	return nil
}

// engineRoot lays an overlay over the cached root. The engine's data is a plain folder under it, so that
// the engine's own overlays work.
func (s holderSpec) engineRoot() ([]mountStep, string) {
	root := filepath.Join(s.Dir, "merged")
	return []mountStep{
		s.overlay(s.Root, "root", root),
		{"/dev", filepath.Join(root, "dev"), "", unix.MS_BIND | unix.MS_REC, ""},
		{"tmpfs", filepath.Join(root, "tmp"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{filepath.Join(s.Dir, "data"), filepath.Join(root, "var/lib/docker"), "", unix.MS_BIND, ""},
	}, root
}

// machineRoot keeps the machine's own root and lays overlays over the folders that a test may write to.
func (s holderSpec) machineRoot() ([]mountStep, string) {
	var steps []mountStep
	for _, dir := range []string{"/etc", "/var/lib", "/usr/local"} {
		steps = append(steps, s.overlay(dir, filepath.Base(dir), dir))
	}
	return steps, "/"
}

func (s holderSpec) overlay(lower, name, target string) mountStep {
	upper, work := filepath.Join(s.Dir, "upper", name), filepath.Join(s.Dir, "work", name)
	return mountStep{"overlay", target, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)}
}

// folders are those that the mounts need, made by the lab before the holder starts.
func (s holderSpec) folders() []string {
	out := []string{"cgroup", "merged", "data", "log"}
	for _, name := range []string{"root", "etc", "lib", "local"} {
		out = append(out, filepath.Join("upper", name), filepath.Join("work", name))
	}
	return out
}

func pivot(root string) error {
	old := filepath.Join(root, ".old")
	if err := os.MkdirAll(old, 0o700); err != nil {
		return fmt.Errorf("making %s: %w", old, err)
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("changing the root to %s: %w", root, err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	if err := unix.Unmount("/.old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the old root: %w", err)
	}
	return os.Remove("/.old")
}

func (s holderSpec) files() error {
	for path, text := range map[string]string{
		"/etc/resolv.conf": "nameserver " + s.DNS + "\noptions timeout:1 attempts:2\n",
		"/etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 lab-host\n",
		"/etc/hostname":    "lab-host\n",
	} {
		// Removed first: it may be a link to somewhere else.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing the old %s: %w", path, err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}
