package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// watchParent ends the process when the one that started it has ended. The
// parent's end is read off a pidfd: PR_SET_PDEATHSIG would send its signal when
// the *thread* ends that started us, and test runners start each test on a
// thread of its own. So the signal asked for is a SIGCONT, which does nothing but
// thaw a process that a test had stopped; it then gets to see the pidfd.
func watchParent() error {
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil {
		return fmt.Errorf("--die-with-parent: %w", err)
	}
	if parent == 1 || os.Getppid() != parent {
		return errors.New("--die-with-parent: the parent is gone already, or is the machine's first process")
	}
	set := make(chan error)
	go func() {
		// The setting belongs to the thread, so the thread must stay.
		runtime.LockOSThread()
		set <- unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCONT), 0, 0, 0)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				os.Exit(1)
			}
		}
	}()
	return <-set
}
