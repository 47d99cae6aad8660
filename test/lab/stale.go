package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dirPattern = "eipnet-lab-*"
	lockName   = "lock"
	// youngDir protects a folder whose lock is not there yet: it is being made.
	youngDir = 10 * time.Minute
)

// newDir makes the lab's folder and locks it as long as the process lives.
func newDir() (string, *os.File, error) {
	dir, err := os.MkdirTemp("", dirPattern)
	if err != nil {
		return "", nil, fmt.Errorf("making the lab's folder: %w", err)
	}
	// The lock gets its name only when it is held, so that nobody takes the folder for a dead one.
	early := filepath.Join(dir, lockName+".new")
	lock, err := os.OpenFile(early, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("making the lab's lock: %w", err), os.RemoveAll(dir))
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = os.Rename(early, filepath.Join(dir, lockName))
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("locking the lab's folder: %w", err), lock.Close(), os.RemoveAll(dir))
	}
	return dir, lock, nil
}

// removeStale removes the folders and cgroups of labs whose process is gone.
func removeStale() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern))
	if err != nil {
		return fmt.Errorf("looking for stale labs: %w", err)
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeIfStale(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing stale labs: %w", err)
	}
	return nil
}

func removeIfStale(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > youngDir {
			return os.RemoveAll(dir)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // it is alive
	}
	return errors.Join(removeCgroups("/"+filepath.Base(dir)), os.RemoveAll(dir))
}

// cgroupTimeout bounds the wait for killed processes to leave their cgroups.
const cgroupTimeout = 10 * time.Second

// removeCgroups removes a cgroup and those below it from every hierarchy.
func removeCgroups(name string) error {
	roots, err := cgroupRoots()
	if err != nil {
		return fmt.Errorf("removing cgroup %s: %w", name, err)
	}
	deadline := time.Now().Add(cgroupTimeout)
	for _, root := range roots {
		for {
			err := removeTree(filepath.Join(root, name))
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("removing cgroup %s: %w", name, err)
			}
			<-time.After(10 * time.Millisecond) // its processes are dead but not yet gone
		}
	}
	return nil
}

// removeTree removes directories bottom-up; the files of a cgroup go with it.
func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	return nil
}

// cgroupRoots lists where the machine's cgroup hierarchies are mounted.
func cgroupRoots() ([]string, error) { return mountsOf("cgroup", "cgroup2") }

// cgroupSource is the folder of the machine that is the host's /sys/fs/cgroup.
func cgroupSource(unified bool) (string, error) {
	if !unified {
		return "/sys/fs/cgroup", nil
	}
	// Bound, and not mounted anew: that would change the options of the machine's mount.
	roots, err := mountsOf("cgroup2")
	if err == nil && len(roots) == 0 {
		err = errors.New("the machine has none mounted")
	}
	if err != nil {
		return "", fmt.Errorf("looking for cgroups version 2: %w", err)
	}
	return roots[0], nil
}

// mountsOf lists where the machine has file systems of these kinds.
func mountsOf(kinds ...string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var targets []string
	for in := bufio.NewScanner(f); in.Scan(); {
		before, after, ok := strings.Cut(in.Text(), " - ")
		fields := strings.Fields(before)
		kind, _, _ := strings.Cut(after, " ")
		if ok && len(fields) > 4 && slices.Contains(kinds, kind) {
			targets = append(targets, fields[4])
		}
	}
	return targets, nil
}
