package state

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestSetAsideWhileOpening: who waits for the lock of a file that is set aside
// meanwhile does not get what is left of it.
func TestSetAsideWhileOpening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	mustClose(t, mustOpen(t, path))
	held, err := openLocked(path, os.O_RDWR)
	ok(t, err)
	info, err := held.Stat()
	ok(t, err)
	opened := make(chan error, 1)
	go func() {
		s, _, err := open(path, quiet)
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		opened <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); descriptors(t, info) < 2; { // it waits for the lock
		if time.Now().After(deadline) {
			t.Fatal("the file was not opened")
		}
	}
	ok(t, os.Rename(path, path+".damaged-1"))
	ok(t, os.WriteFile(path, nil, 0o600))
	ok(t, held.Close())
	if err := <-opened; !errors.Is(err, ErrLocked) {
		t.Errorf("error %v", err)
	}
}

// descriptors counts this process' descriptors of a file.
func descriptors(t *testing.T, file os.FileInfo) (n int) {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(os.Getpid()) + "/fd"
	list, err := os.ReadDir(dir)
	ok(t, err)
	for _, fd := range list {
		if info, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && os.SameFile(info, file) {
			n++
		}
	}
	return n
}
