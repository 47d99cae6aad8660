package state

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// TestEmptyFile: bbolt makes an empty file first, and then locks and fills it.
// Who finds it empty waits a moment, and does not take it for a damaged one.
func TestEmptyFile(t *testing.T) {
	data, endpoints := filled(t)
	for _, tc := range []struct {
		name    string
		filled  bool
		keeps   bool // whoever fills it goes on to run
		damaged bool
	}{
		{name: "filled, and closed", filled: true},
		{name: "filled, and in use", filled: true, keeps: true},
		{name: "it stays empty", damaged: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			ok(t, os.WriteFile(path, nil, 0o600))
			maker, err := os.OpenFile(path, os.O_RDWR, 0)
			ok(t, err)
			made := make(chan error, 1)
			go func() {
				<-time.After(2 * lockRetry) // by then it was seen to be empty
				if !tc.filled {
					made <- maker.Close()
					return
				}
				err := unix.Flock(int(maker.Fd()), unix.LOCK_EX)
				if err == nil {
					_, err = maker.Write(data)
				}
				if !tc.keeps {
					err = errors.Join(err, maker.Close())
				}
				made <- err
			}()
			s, problem, err := Open(path, quiet)
			ok(t, <-made)
			if tc.keeps {
				defer maker.Close()
				if !errors.Is(err, ErrLocked) {
					t.Errorf("error %v, problem %v, want %v", err, problem, ErrLocked)
				}
			} else {
				ok(t, err)
				defer mustClose(t, s)
			}
			if _, err := os.Stat(path + ".damaged-1"); (err == nil) != tc.damaged {
				t.Errorf("set aside: %v", err)
			}
			switch {
			case !tc.damaged && problem != nil:
				t.Errorf("problem %v", problem)
			case tc.damaged && (problem == nil || problem.Code != model.CodeStateDamaged || !s.Fresh()):
				t.Errorf("problem %v, fresh %v", problem, s.Fresh())
			case !tc.damaged && !tc.keeps && (s.Fresh() || len(s.Endpoints()) != len(endpoints)):
				t.Errorf("fresh %v, %d endpoints, want %d", s.Fresh(), len(s.Endpoints()), len(endpoints))
			}
		})
	}
}
