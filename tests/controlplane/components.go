package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/klog/v2"
)

// component is a part that runs until its context is cancelled.
type component struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{} // closed when the part has returned
	err    error         // what it returned; valid once done is closed
}

// startComponent runs the function in the background. It gets a context of its
// own rather than the one that ends at a signal, because stopping goes in order.
func startComponent(name string, run func(context.Context) error) *component {
	ctx, cancel := context.WithCancel(context.Background())
	c := &component{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = run(ctx)
	}()
	return c
}

// stop asks the part to end and reports whether it did so within the limit.
func (c *component) stop(limit time.Duration) bool {
	c.cancel()
	select {
	case <-c.done:
		return true
	case <-time.After(limit):
		klog.V(1).InfoS("Abandoned a component that did not stop in time", "component", c.name, "limit", limit)
		return false
	}
}

// forward reports that a part has ended. None of them ever should by itself.
func forward(c *component, failed chan<- error) {
	<-c.done
	if c.err != nil {
		failed <- fmt.Errorf("%s: %w", c.name, c.err)
	} else {
		failed <- fmt.Errorf("%s has ended by itself", c.name)
	}
}

// components are what has been started so far.
type components struct {
	etcd              *embed.Etcd
	apiserver         *component
	controllerManager *component
}

// stop ends the parts in the reverse order of their dependencies.
//
// Watches that clients hold keep an apiserver from ending for a minute; then
// etcd is left alone as well, since closing it waits for its clients, and the
// process ends with both of them running. That loses nothing (see startEtcd).
func (c *components) stop() {
	if c.controllerManager != nil {
		c.controllerManager.stop(controllerManagerStopLimit)
	}
	if !c.apiserver.stop(apiserverStopLimit) {
		return
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.etcd.Close()
	}()
	select {
	case <-closed:
	case <-time.After(etcdStopLimit):
	}
}
