package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

const (
	lockTimeout = time.Second
	lockRetry   = 20 * time.Millisecond
	emptyTries  = int(lockTimeout / lockRetry) // looks at an empty file before it counts as damaged
)

// ErrLocked says that another process, or this one, has the state file open:
// the error is a [*LockedError] then.
var ErrLocked = errors.New("another eipnet runs")

var (
	errDamaged = errors.New("damaged")
	errPanic   = errors.New("unreadable") // beside errDamaged: bbolt's locks may be held for ever
	errNewer   = errors.New("written by a newer eipnet")
)

// Open opens the state file, or makes it and its directory. A file that cannot
// be used, because it is damaged or a newer eipnet wrote it, is renamed and a
// new one made in its place; one with unreadable records is rebuilt without
// them, and kept. Where the disk is full or read-only, a copy in memory is
// opened. In all three cases the Problem says so. An error means that there is
// no store: the file is locked (ErrLocked, after a second) or cannot be read.
func Open(path string, log *slog.Logger) (*Store, *model.Problem, error) {
	s, problem, err := openFile(path, log)
	if unwritable(err) {
		return withoutDisk(path, err, problem, log)
	}
	return s, problem, err
}

// openFile opens the file itself. A Problem beside an error says that a file was
// set aside.
func openFile(path string, log *slog.Logger) (*Store, *model.Problem, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the state directory: %w", err)
	}
	problem, notes, err := vet(path, log)
	if err != nil {
		return nil, nil, err
	}
	s, lost, err := open(path, log)
	if errors.Is(err, errDamaged) || errors.Is(err, errNewer) {
		// The lock is held: by the open database, or by what a panic in
		// bbolt left behind.
		cause := err
		if problem, err = setAside(path, cause, log); err != nil {
			return nil, nil, err
		}
		if s != nil {
			if err := s.Close(); err != nil {
				log.Warn("closing the damaged state file failed", slog.String("path", path), slog.Any("err", err))
			}
		}
		s, lost, err = open(path, log)
	}
	if err != nil {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		return nil, problem, fmt.Errorf("opening state file %s: %w", path, err)
	}
	if lost = append(notes, lost...); len(lost) == 0 || s.fresh {
		return s, problem, nil
	}
	s, problem, err = s.rebuild(lost)
	if err != nil {
		return nil, nil, fmt.Errorf("rebuilding state file %s: %w", path, err)
	}
	return s, problem, nil
}

// vet looks at the file's structure before bbolt does, which follows every
// damaged pointer, and sets a damaged file aside.
func vet(path string, log *slog.Logger) (*model.Problem, []string, error) {
	f, err := openLocked(path, os.O_RDWR)
	// Who makes the file locks it a moment later, and fills it then.
	for n := 0; n < emptyTries && err == nil && f != nil && isEmpty(f); n++ {
		if err = f.Close(); err == nil {
			<-time.After(lockRetry)
			f, err = openLocked(path, os.O_RDWR)
		}
	}
	if f == nil || err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, fmt.Errorf("reading state file %s: %w", path, err)
	}
	var notes []string
	err = guarded(func() (err error) {
		notes, err = verify(data)
		return err
	})
	if err != nil {
		problem, err := setAside(path, err, log)
		return problem, nil, err
	}
	return nil, notes, nil
}

func isEmpty(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Size() == 0
}

// openLocked opens and locks the file; it returns none if there is none.
func openLocked(path string, flag int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flag, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("opening the state file: %w", err)
		}
		if err := lock(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// Who had the lock may have put another file in this one's place.
		if inPlace(f, path) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("closing state file %s: %w", path, err)
		}
	}
}

// inPlace reports whether the open file is the one at the path.
func inPlace(f *os.File, path string) bool {
	mine, err := f.Stat()
	now, err2 := os.Stat(path)
	return err == nil && err2 == nil && os.SameFile(mine, now)
}

// lock takes bbolt's lock on the file; closing it gives the lock back.
func lock(f *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("locking state file %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return newLockedError(f.Name())
		case <-time.After(lockRetry):
		}
	}
}

// setAside renames an unusable file. Callers hold its lock, so that of two
// eipnets started at once neither takes the other's new file for the damaged one.
func setAside(path string, cause error, log *slog.Logger) (*model.Problem, error) {
	aside, err := asideName(path)
	if err == nil {
		err = os.Rename(path, aside)
	}
	if err != nil {
		return nil, fmt.Errorf("setting state file %s aside: %w", path, err)
	}
	log.Error("state file set aside", slog.String("path", path), slog.String("aside", aside), slog.Any("err", cause))
	fix := "check the disk; what runs goes on as it is, and networks that have to be made again are named as problems"
	if errors.Is(cause, errNewer) {
		fix = "stop eipnet, install the newer version again and move the file back, or delete it"
	}
	return &model.Problem{
		Code:     model.CodeStateDamaged,
		Severity: model.Failure,
		Subject:  path,
		Text:     fmt.Sprintf("%v; set aside as %s and begun anew", cause, aside),
		Fix:      fix,
	}, nil
}

func asideName(path string) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.damaged-%d", path, n)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return aside, nil
		} else if err != nil {
			return "", err
		}
	}
}

// open opens the file with bbolt and reads all of it. A Store beside an error
// has the file open.
func open(path string, log *slog.Logger) (*Store, []string, error) {
	s := newStore(path, log)
	_, err := os.Lstat(path)
	absent := errors.Is(err, fs.ErrNotExist)
	var file *os.File
	o := &bolt.Options{Timeout: lockTimeout, OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		file, err = os.OpenFile(name, flag, mode)
		return file, err
	}}
	err = guarded(func() (err error) {
		s.db, err = bolt.Open(path, 0o600, o)
		return err
	})
	if err == nil && !inPlace(file, path) { // while we waited for the lock, somebody set it aside
		return nil, nil, errors.Join(newLockedError(path), s.db.Close())
	}
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, nil, newLockedError(path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum):
		return nil, nil, fmt.Errorf("%w: %w", errDamaged, err)
	case err != nil:
		if absent {
			err = errors.Join(err, remove(path))
		}
		return nil, nil, err
	}
	var lost []string
	err = guarded(func() (err error) {
		// Of two started at once, the second finds the first one's file.
		if s.fresh = absent && s.empty(); !s.fresh {
			lost, err = s.load()
			return err
		}
		if err = s.create(); err != nil {
			err = errors.Join(err, remove(path))
		}
		return err
	})
	if errors.Is(err, errPanic) {
		s.broken = err
	}
	return s, lost, err
}

// remove takes a half-made file away, so that the next start does not find it damaged.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the half-made file: %w", err)
	}
	return nil
}

// empty reports whether the file has no bucket at all.
func (s *Store) empty() bool {
	empty := false
	err := s.db.View(func(tx *bolt.Tx) error {
		k, _ := tx.Cursor().First()
		empty = k == nil
		return nil
	})
	return err == nil && empty
}

// guarded runs what touches bbolt's memory map. Damage shows there as a panic,
// or as a fault where the file is shorter than its pages say; both become errors.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %w: %v", errDamaged, errPanic, r)
		}
	}()
	return fn()
}
