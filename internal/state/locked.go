package state

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// LockedError says who has the state file open. It is [ErrLocked].
type LockedError struct {
	Path string
	PID  int // 0: the kernel does not tell, as in another PID namespace
}

func newLockedError(path string) error { return &LockedError{path, Holder(path)} }

func (e *LockedError) Error() string {
	who := ""
	if e.PID != 0 {
		who = fmt.Sprintf("process %d, ", e.PID)
	}
	return fmt.Sprintf("%v (%sstate file %s is locked): stop it, or use another --state-dir", ErrLocked, who, e.Path)
}

// Unwrap returns [ErrLocked].
func (e *LockedError) Unwrap() error { return ErrLocked }

// Holder returns the process that has the state file open and locked, by the
// kernel's list of locks; 0 if there is none, or it is not told.
//
//	4: FLOCK  ADVISORY  WRITE 1234 08:01:131085 0 EOF
func Holder(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer locks.Close()
	lines := bufio.NewScanner(locks)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 6 || f[1] != "FLOCK" {
			continue
		}
		// The device in the list is not always the one that stat tells: ask
		// whether the process has this very file open.
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 && hasOpen(pid, info) {
			return pid
		}
	}
	return 0
}

func hasOpen(pid int, file os.FileInfo) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if info, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
}

// Files lists the state file and what was set aside beside it, as far as they are there.
func Files(path string) ([]string, error) {
	found, err := filepath.Glob(path + "*")
	if err != nil {
		return nil, fmt.Errorf("listing state files: %w", err)
	}
	var out []string
	for _, f := range found {
		rest := strings.TrimPrefix(f, path)
		if rest == "" || rest == ".new" || strings.HasPrefix(rest, ".damaged-") {
			out = append(out, f)
		}
	}
	return out, nil
}
