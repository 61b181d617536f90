// Command controlplane is a Kubernetes control plane for tests and demos: etcd,
// kube-apiserver and kube-controller-manager of one real release, in one
// process, on loopback only.
//
// Nothing in it is a mock. Admission policies, RBAC, token requests, garbage
// collection and workload controllers behave as in any cluster. What is missing
// is whatever needs a node: there is no scheduler and no kubelet, so pods are
// created but never run.
//
// One process rather than three means that a test can freeze, kill and restart
// the whole control plane with one signal, and that nothing is left behind.
//
//	controlplane --dir DIR --kubeconfig FILE [--keep] [--audit-log FILE]
//	             [--die-with-parent] [--fsync] [-v N]
//
// It prints one line, "ready https://127.0.0.1:PORT", when everything works and
// the kubeconfig is written, and runs until SIGTERM or SIGINT, at which it exits
// with 0 within five seconds. It needs Linux.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
)

// Bounds on how long things take. Starting takes about three seconds on an idle
// machine; the limit is for one that compiles something else at the same time.
const (
	startLimit = 3 * time.Minute

	// A stop that takes longer than five seconds makes test suites slow and
	// supervisors impatient, so each part gets a share and is then abandoned.
	// Abandoning is safe: all that was acknowledged is in etcd's log.
	controllerManagerStopLimit = 1 * time.Second
	apiserverStopLimit         = 2 * time.Second
	etcdStopLimit              = 1 * time.Second
)

// options are the command line, with absolute paths.
type options struct {
	dir           string
	kubeconfig    string
	auditLog      string
	keep          bool
	fsync         bool
	dieWithParent bool
	verbosity     int
}

func main() {
	opts, err := parseOptions(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

func parseOptions(args []string) (options, error) {
	var opts options
	flags := pflag.NewFlagSet("controlplane", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&opts.dir, "dir", "", "state directory; made if it is missing, refused if it holds anything else")
	flags.StringVar(&opts.kubeconfig, "kubeconfig", "", "file to write the administrator's kubeconfig to, once ready")
	flags.BoolVar(&opts.keep, "keep", false, "keep the state at start and exit: port, credentials and objects survive a restart")
	flags.StringVar(&opts.auditLog, "audit-log", "", "file to append one JSON line per request to, reads by the control plane itself left out")
	flags.BoolVar(&opts.dieWithParent, "die-with-parent", false, "end when the parent process ends, however it ends")
	flags.BoolVar(&opts.fsync, "fsync", false, "let etcd sync to disk: survives a crash of the machine, not only of the process, and is slower")
	flags.IntVarP(&opts.verbosity, "verbosity", "v", 0, "0 logs warnings and errors only; higher numbers log as Kubernetes does")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	if flags.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if opts.dir == "" || opts.kubeconfig == "" {
		return opts, errors.New("--dir and --kubeconfig are required")
	}
	// The working directory changes later on (see enter), so no path may depend on it.
	for _, path := range []*string{&opts.dir, &opts.kubeconfig, &opts.auditLog} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return opts, err
		}
		*path = absolute
	}
	return opts, nil
}

// run starts everything, waits for a signal or a failure, and stops everything.
func run(opts options) error {
	syscall.Umask(0o077) // keys, etcd's data and the audit log are for this user only

	if opts.dieWithParent {
		if err := dieWithParent(); err != nil {
			return err
		}
	}
	ctx, stopNotify := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stopNotify()
	go func() {
		// A second signal ends the process at once, as if nothing had been caught.
		<-ctx.Done()
		stopNotify()
	}()
	logs := startLogging(opts.verbosity)
	// The components warn about deprecated APIs that they themselves still use.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})

	state, err := openState(opts.dir, opts.keep)
	if err != nil {
		return err
	}
	if err := prepareKubeconfig(opts.kubeconfig, opts.keep); err != nil {
		return errors.Join(err, state.close())
	}

	err = serve(ctx, opts, state, logs)
	if err != nil {
		logs.open() // what was held back may say why
	}
	if !opts.keep {
		err = errors.Join(err, removeIfPresent(opts.kubeconfig))
	}
	return errors.Join(err, state.close())
}

// serve brings the components up in the order in which they need each other and
// takes them down in the reverse order. It returns nil after a requested stop.
func serve(ctx context.Context, opts options, state *state, logs *logs) error {
	failed := make(chan error, 3)
	starting, cancelStarting := context.WithTimeoutCause(ctx, startLimit,
		fmt.Errorf("not ready after %s", startLimit))
	defer cancelStarting()

	listener, err := state.listen()
	if err != nil {
		return err
	}
	url := "https://" + listener.Addr().String()
	if err := state.ensureKeys(); err != nil {
		return err
	}
	etcd, err := startEtcd(opts, logs)
	if err != nil {
		return err
	}
	apiserver, err := startAPIServer(opts, state, listener)
	if err != nil {
		etcd.Close()
		return err
	}
	go forward(apiserver, failed)
	go func() {
		if err, open := <-etcd.Err(); open {
			failed <- fmt.Errorf("etcd: %w", err)
		}
	}()
	components := components{etcd: etcd, apiserver: apiserver}

	err = func() error {
		probe, err := newProbe(state, url)
		if err != nil {
			return err
		}
		if err := probe.waitForAPI(starting, failed); err != nil {
			return err
		}
		components.controllerManager, err = startControllerManager(state, url)
		if err != nil {
			return err
		}
		go forward(components.controllerManager, failed)
		if err := probe.waitForControllers(starting, failed); err != nil {
			return err
		}
		return writeKubeconfig(opts.kubeconfig, state, url)
	}()
	// A start that is called off or fails does not stop what it has started, it
	// just ends: an apiserver that is stopped half-way kills the process.
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	cancelStarting()
	logs.forget()
	logs.open()
	fmt.Println("ready", url)

	select {
	case <-ctx.Done():
		logs.close() // from here on the parts complain about each other's absence
		components.stop()
		return nil
	case err := <-failed:
		return err
	}
}
