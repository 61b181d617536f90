package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"strconv"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/grpclog"
	"k8s.io/klog/v2"
)

// logs decides which of the components' logs reach stderr.
//
// Every start of a healthy control plane logs some forty warnings and errors
// that mean nothing, and so does every stop. They are held back, and shown if
// the start fails.
type logs struct {
	verbose bool

	mutex sync.Mutex
	state gate
	held  bytes.Buffer
}

// gate is what happens to a line.
type gate int

const (
	gateHeld gate = iota
	gateOpen
	gateClosed
)

// startLogging configures klog. The components' own logging options are never
// applied: that may be done only once per process, and both of them would.
func startLogging(verbosity int) *logs {
	l := &logs{verbose: verbosity > 0}
	if l.verbose {
		l.state = gateOpen
	}
	flags := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{
		"v":               strconv.Itoa(verbosity),
		"logtostderr":     "false", // but to the writers below,
		"one_output":      "true",  // each line to one of them
		"stderrthreshold": "FATAL",
	} {
		if err := flags.Set(name, value); err != nil {
			panic(err)
		}
	}
	klog.SetOutput(l)
	if !l.verbose {
		klog.SetOutputBySeverity("INFO", io.Discard)
		// For each CustomResourceDefinition the apiserver opens connections to
		// etcd and thinks better of it, of which gRPC warns.
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, l))
	}
	// Some components end the process themselves when they cannot start.
	klog.OsExit = func(code int) {
		l.open()
		os.Exit(code)
	}
	return l
}

// forEtcd is a logger for etcd, which does not know klog.
func (l *logs) forEtcd() *zap.Logger {
	// That requests wait for the cores of a busy machine is no news.
	level := zapcore.ErrorLevel
	if l.verbose {
		level = zapcore.InfoLevel
	}
	encoder := zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.AddSync(l), level)).Named("etcd")
}

// Write takes a line.
func (l *logs) Write(line []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	switch l.state {
	case gateHeld:
		return l.held.Write(line)
	case gateOpen:
		return os.Stderr.Write(line)
	}
	return len(line), nil
}

// open shows what was held back and all that follows.
func (l *logs) open() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.state = gateOpen
	_, _ = l.held.WriteTo(os.Stderr)
}

// forget drops what was held back.
func (l *logs) forget() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.held = bytes.Buffer{}
}

// close drops all that follows.
func (l *logs) close() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if !l.verbose && l.state == gateOpen {
		l.state = gateClosed
	}
}
