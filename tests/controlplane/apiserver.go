package main

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"sigs.k8s.io/yaml"
)

// Addresses of Services. Nothing routes them; the API only hands them out. The
// first one is the apiserver's own.
const (
	serviceRange = "10.96.0.0/16"
	serviceIP    = "10.96.0.1"
)

// issuer is the one that clusters have by default.
const issuer = "https://kubernetes.default.svc.cluster.local"

// startAPIServer runs kube-apiserver on the listener.
//
// Its options are completed and run here rather than through its command,
// which would install a signal handler of its own, as would the other one's:
// the second to do so panics.
func startAPIServer(opts options, state *state, listener net.Listener) (*component, error) {
	arguments := []string{
		"--etcd-servers=" + etcdSocket,

		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		// Loopback addresses are not valid in Endpoints, so the Service
		// `kubernetes` gets none.
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=" + serviceRange,

		"--tls-cert-file=" + state.cert(servingFile),
		"--tls-private-key-file=" + state.key(servingFile),
		"--client-ca-file=" + state.cert(authorityFile),
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + state.path("pki", serviceAccountFile+".pub"),
		"--service-account-signing-key-file=" + state.key(serviceAccountFile),
		"--authorization-mode=RBAC",

		// A test that needs a 429 injects it. The server's own would come
		// and go with the load on the machine, so its limits are wide.
		"--enable-priority-and-fairness=false",
		"--max-requests-inflight=800",
		"--max-mutating-requests-inflight=400",

		"--allow-privileged=true", // as installers set it
		"--profiling=false",
	}
	if opts.auditLog != "" {
		policy, err := writeAuditPolicy(state)
		if err != nil {
			return nil, err
		}
		arguments = append(arguments,
			"--audit-policy-file="+policy,
			"--audit-log-path="+opts.auditLog,
			"--audit-log-maxsize=0", // never rotated: tests count lines
		)
	}

	server := apiserveroptions.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range server.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(arguments); err != nil {
		return nil, fmt.Errorf("kube-apiserver: %w", err)
	}
	server.SecureServing.Listener = listener
	server.SecureServing.BindPort = listener.Addr().(*net.TCPAddr).Port
	// Feature gates take effect only by this.
	if err := server.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("kube-apiserver: %w", err)
	}

	return startComponent("kube-apiserver", func(ctx context.Context) error {
		completed, err := server.Complete(ctx)
		if err != nil {
			return err
		}
		if errs := completed.Validate(); len(errs) != 0 {
			return utilerrors.NewAggregate(errs)
		}
		return app.Run(ctx, completed)
	}), nil
}

// writeAuditPolicy makes the policy for the audit log: who did what, without
// bodies, for every request but the control plane's own reads.
//
// Controllers run as a ServiceAccount each. They are named one by one, by the
// roles that they are born with, so that a reader that a test installs in
// kube-system is not mistaken for one of them.
func writeAuditPolicy(state *state) (string, error) {
	system := []string{"system:apiserver", "system:kube-controller-manager"}
	for _, role := range bootstrappolicy.ControllerRoles() {
		if name, found := strings.CutPrefix(role.Name, "system:controller:"); found {
			system = append(system, "system:serviceaccount:kube-system:"+name)
		}
	}
	policy, err := yaml.Marshal(auditv1.Policy{
		TypeMeta: metav1.TypeMeta{APIVersion: auditv1.SchemeGroupVersion.String(), Kind: "Policy"},
		// One line per request, written when it is answered (ResponseComplete).
		// A watch has one more when it begins (ResponseStarted), so count
		// watches by that one.
		OmitStages: []auditv1.Stage{auditv1.StageRequestReceived},
		Rules: []auditv1.PolicyRule{
			{Level: auditv1.LevelNone, Users: []string{probeUser}},
			{Level: auditv1.LevelNone, Users: system, Verbs: []string{"get", "list", "watch"}},
			{Level: auditv1.LevelMetadata},
		},
	})
	if err != nil {
		return "", err
	}
	path := state.path("audit-policy.yaml")
	return path, writeFile(path, policy)
}
