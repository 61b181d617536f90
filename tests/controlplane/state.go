package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ports are drawn from a range below the one from which kernels give out ports
// for outgoing connections (32768 and up). Otherwise the port of a killed
// control plane could be taken by any connection before its restart.
const (
	firstPort = 20000
	lastPort  = 29999
)

// lockName is the file that says that a directory is ours. It is locked while
// in use, and the lock goes with the process whichever way that ends.
const lockName = "controlplane.lock"

// state is the directory in which everything lives that a restart needs:
//
//	controlplane.lock  taken while in use
//	port               the apiserver's
//	pki/               authority, certificates and keys
//	etcd/              etcd's log and database
//
// and some files that are written anew at each start.
type state struct {
	dir  string
	keep bool
	lock *os.File
}

// openState locks the directory and, unless it is to be kept, empties it. It is
// the one place that deletes by a path from the command line, so it refuses
// directories that hold something and were not made by this program.
func openState(dir string, keep bool) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, lockName)); len(entries) > 0 && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not empty and not the state of a control plane", dir)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s is in use by another control plane: %w", dir, err)
	}
	s := &state{dir: dir, keep: keep, lock: lock}
	if !keep {
		if err := s.empty(); err != nil {
			return nil, err
		}
	}
	return s, s.enter()
}

// enter makes the state the working directory: the path of a socket may have no
// more than 107 bytes, which temporary directories of test runners exceed, so
// etcd's is named relative to it.
func (s *state) enter() error {
	return os.Chdir(s.dir)
}

// close discards the state unless it is to be kept, and unlocks it.
func (s *state) close() error {
	defer s.lock.Close()
	if s.keep {
		return nil
	}
	// An abandoned component may write a file in between.
	var err error
	for range 10 {
		if err = s.empty(); err == nil {
			return os.RemoveAll(s.dir)
		}
	}
	return err
}

// empty removes all but the lock.
func (s *state) empty() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == lockName {
			continue
		}
		if err := os.RemoveAll(s.path(entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// listen opens the apiserver's port: the one it had before, or else a free one.
// The listener is handed on as it is, so nobody can take the port in between.
func (s *state) listen() (net.Listener, error) {
	recorded, err := os.ReadFile(s.path("port"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.listenOnFreePort()
	case err != nil:
		return nil, err
	}
	port := strings.TrimSpace(string(recorded))
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %s, on which this state was served before, has been taken by another process", port)
	}
	return listener, err
}

func (s *state) listenOnFreePort() (net.Listener, error) {
	var listener net.Listener
	var err error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		listener, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return listener, writeFile(s.path("port"), []byte(strconv.Itoa(port)+"\n"))
		}
	}
	return nil, fmt.Errorf("no free port from %d to %d: %w", firstPort, lastPort, err)
}

// writeFile replaces a file as a whole: whoever reads it, and a start after a
// SIGKILL in mid-write, finds the old content or the new one.
func writeFile(path string, content []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = temporary.Write(content) // mode 0600 from CreateTemp
	if err := errors.Join(err, temporary.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return os.Rename(temporary.Name(), path)
}

func removeIfPresent(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
