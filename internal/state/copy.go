package state

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// memoryDirs are where a copy is made: file systems in memory, if there is one.
func memoryDirs() []string { return []string{"/dev/shm", "/run", os.TempDir()} }

// unwritable reports whether the error says that the file, or what it needs
// beside it, cannot be written, though it may be readable.
func unwritable(err error) bool {
	for _, cause := range []error{unix.EROFS, unix.ENOSPC, unix.EDQUOT, fs.ErrPermission} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// Copy opens a copy of the state file in memory, an empty one if there is no
// file. Nobody else sees what is written to it, and it goes with the process.
// The file is neither locked nor changed. A Problem says what of it is damaged.
func Copy(path string, log *slog.Logger) (*Store, *model.Problem, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("reading state file %s: %w", path, err)
	}
	s, problem, err := openCopy(data, err == nil)
	if err != nil {
		return nil, nil, fmt.Errorf("copying state file %s: %w", path, err)
	}
	s.path, s.log = path, log
	if problem != nil {
		// The last part says under which name the damaged one is kept: that was the copy.
		text := problem.Text
		if i := strings.LastIndex(text, "; "); i >= 0 {
			text = text[:i]
		}
		problem.Subject, problem.Text = path, text+"; left as it is, as only a copy of it was read"
	}
	return s, problem, nil
}

// openCopy opens a file of that content which no longer has a name.
func openCopy(data []byte, there bool) (*Store, *model.Problem, error) {
	var errs []error
	for _, in := range memoryDirs() {
		dir, err := os.MkdirTemp(in, fmt.Sprintf("eipnet-state-%d-", os.Getpid()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		path := filepath.Join(dir, "state.db")
		if there {
			err = os.WriteFile(path, data, 0o600)
		}
		var s *Store
		var problem *model.Problem
		if err == nil {
			s, problem, err = openFile(path, slog.New(slog.DiscardHandler))
		}
		if removeErr := os.RemoveAll(dir); err == nil && removeErr != nil {
			err = errors.Join(removeErr, s.Close())
		}
		if err == nil {
			return s, problem, nil
		}
		errs = append(errs, err)
	}
	return nil, nil, errors.Join(errs...)
}

// withoutDisk opens a copy, as the file cannot be written because of cause, and
// keeps the file locked if it is there. before is what was told of it already.
func withoutDisk(path string, cause error, before *model.Problem, log *slog.Logger) (*Store, *model.Problem, error) {
	held, err := openLocked(path, os.O_RDONLY)
	if errors.Is(err, ErrLocked) {
		return nil, nil, err
	}
	if err != nil { // some network file systems lock only what is open for writing
		log.Warn("state file not locked", slog.String("path", path), slog.Any("err", err))
	}
	s, damage, err := Copy(path, log)
	if err != nil {
		if held != nil {
			err = errors.Join(err, held.Close())
		}
		return nil, nil, errors.Join(cause, err)
	}
	s.held = held
	short := cause
	if errno, is := errors.AsType[unix.Errno](cause); is {
		short = errno // the log has all of it
	}
	text := []string{fmt.Sprintf("cannot be written (%v): a copy in memory is used, and nothing new is remembered over a restart of eipnet or of the host", short)}
	for _, p := range []*model.Problem{before, damage} {
		if p != nil {
			text = append(text, p.Text)
		}
	}
	log.Error("state file cannot be written; a copy in memory is used", slog.String("path", path), slog.Any("err", cause))
	return s, &model.Problem{
		Code:     model.CodeStateReadOnly,
		Severity: model.Failure,
		Subject:  path,
		Text:     strings.Join(text, "; "),
		Fix:      "make room, or the file system writable, and restart eipnet; networks that are made until then have to be made again",
	}, nil
}
