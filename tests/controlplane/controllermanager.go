package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controlleroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

// idle are the controllers that have nothing to do, or only complain, where
// there are no nodes, no volumes and no metrics. The two that take finalizers
// off volumes stay: without them a namespace with a claim could not be deleted.
var idle = []string{
	names.CertificateSigningRequestApprovingController,
	names.CertificateSigningRequestCleanerController,
	names.CertificateSigningRequestSigningController,
	names.DeviceTaintEvictionController,
	names.EphemeralVolumeController,
	names.HorizontalPodAutoscalerController,
	names.NodeIpamController,
	names.NodeLifecycleController,
	names.PersistentVolumeAttachDetachController,
	names.PersistentVolumeBinderController,
	names.PersistentVolumeExpanderController,
	names.PodCertificateRequestCleanerController,
	names.ResourceClaimController,
	names.TTLController,
	names.TaintEvictionController,
}

// startControllerManager runs kube-controller-manager against the apiserver.
func startControllerManager(state *state, url string) (*component, error) {
	kubeconfig := state.path("controller-manager.kubeconfig")
	if err := writeKubeconfigFor(kubeconfig, state, url, controllerManagerFile); err != nil {
		return nil, err
	}
	arguments := []string{
		"--kubeconfig=" + kubeconfig,
		// As in any cluster, each controller acts under a name of its own:
		// admission policies that let the garbage collector pass need it.
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + state.key(serviceAccountFile),
		"--root-ca-file=" + state.cert(authorityFile),
		"--controllers=*,-" + strings.Join(idle, ",-"),
		// A leader that is frozen for a minute loses its lease, and ends.
		"--leader-elect=false",
		"--secure-port=0",
		// The default of 20 requests per second would make a test that
		// deletes a thousand objects wait for the garbage collector.
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
		"--controller-shutdown-timeout=" + controllerManagerStopLimit.String(),
		"--profiling=false",
	}

	manager, err := controlleroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("kube-controller-manager: %w", err)
	}
	known, disabled, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	sets := manager.Flags(known, disabled, aliases)
	flags := pflag.NewFlagSet("kube-controller-manager", pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		flags.AddFlagSet(set)
	}
	manager.ParsedFlags = &sets
	if err := flags.Parse(arguments); err != nil {
		return nil, fmt.Errorf("kube-controller-manager: %w", err)
	}

	return startComponent("kube-controller-manager", func(ctx context.Context) error {
		config, err := manager.Config(ctx, known, disabled, aliases)
		if err != nil {
			return err
		}
		return app.Run(ctx, config.Complete())
	}), nil
}
