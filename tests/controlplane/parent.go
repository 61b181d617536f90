package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// dieWithParent sees to it that the process does not outlive the one that
// started it, be that killed, and be this one frozen at the time.
//
// The kernel's own means for this, PR_SET_PDEATHSIG, sends its signal when the
// *thread* that started us ends. Test runners start each test on a thread of its
// own, so with SIGKILL a control plane that several tests share would die with
// the first of them. So the parent's end is read off a pidfd, and the
// parent-death signal is a SIGCONT: it does nothing but thaw a process that a
// test had stopped, which then gets to see the pidfd.
func dieWithParent() error {
	parent := os.Getppid()
	if parent == 1 {
		return errors.New("--die-with-parent: the parent is gone already, or is the machine's first process")
	}
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil {
		return fmt.Errorf("--die-with-parent: %w", err)
	}
	if os.Getppid() != parent {
		return errors.New("--die-with-parent: the parent is gone already")
	}
	set := make(chan error)
	go func() {
		// The setting belongs to the thread, so the thread must stay.
		runtime.LockOSThread()
		err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCONT), 0, 0, 0)
		set <- err
		if err != nil {
			return
		}
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				klog.ErrorS(err, "Cannot watch the parent process")
			}
			// At once and without tidying up: whoever would mind is dead.
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}()
	return <-set
}
