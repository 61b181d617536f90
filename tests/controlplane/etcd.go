package main

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdSocket is where etcd serves the apiserver. It is a socket in the state
// directory, which only this user may enter, because etcd without TLS on a port
// would let every local user read and write everything. The name is relative to
// the working directory (see state.enter); etcd insists on a port in it.
const etcdSocket = "unix://etcd:1"

// startEtcd runs a cluster of one member and waits until it serves.
//
// By default it does not sync: after a SIGKILL of the process what it wrote is
// in the kernel's hands, so every acknowledged write is there at the next
// start. Only a crash of the machine can lose any.
func startEtcd(opts options, logs *logs) (*embed.Etcd, error) {
	socket, err := url.Parse(etcdSocket)
	if err != nil {
		return nil, err
	}
	// Members introduce themselves to each other by this address. There are no
	// others, so nothing listens there.
	peer, err := url.Parse("http://127.0.0.1:2380")
	if err != nil {
		return nil, err
	}
	config := embed.NewConfig()
	config.Dir = "etcd"
	config.ListenClientUrls = []url.URL{*socket}
	config.AdvertiseClientUrls = []url.URL{*socket}
	config.ListenPeerUrls = nil
	config.AdvertisePeerUrls = []url.URL{*peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.UnsafeNoFsync = !opts.fsync
	config.EnableGRPCGateway = false
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logs.forEtcd())

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, fmt.Errorf("etcd: %w", err)
	case <-time.After(time.Minute):
		etcd.Close()
		return nil, errors.New("etcd: not ready after a minute")
	}
}
