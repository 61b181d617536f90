package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// probe finds out whether the control plane does what it is for. Listening
// sockets say little: a test that starts too early fails for want of a role, a
// ServiceAccount or a garbage collector, once in a hundred runs.
type probe struct {
	client kubernetes.Interface
}

func newProbe(state *state, url string) (*probe, error) {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: url,
		TLSClientConfig: rest.TLSClientConfig{
			CAFile:   state.cert(authorityFile),
			CertFile: state.cert(probeFile),
			KeyFile:  state.key(probeFile),
		},
		UserAgent: "controlplane-probe",
		QPS:       -1,
		Timeout:   10 * time.Second,
	})
	return &probe{client: client}, err
}

// waitForAPI waits until the apiserver calls itself ready, which includes its
// built-in roles and the caches of its admission policies.
func (p *probe) waitForAPI(ctx context.Context, failed <-chan error) error {
	return until(ctx, failed, "kube-apiserver's /readyz", func() error {
		return p.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// waitForControllers waits for what a first start brings about, and for the
// garbage collector, which of all controllers takes longest to get going and
// so says, at a restart on a kept state too, that they run.
func (p *probe) waitForControllers(ctx context.Context, failed <-chan error) error {
	var orphan *corev1.ConfigMap
	err := until(ctx, failed, "the namespace kube-system", func() (err error) {
		orphan, err = p.createOrphan(ctx)
		return err
	})
	if err != nil {
		return err
	}
	err = until(ctx, failed, "the ServiceAccount default/default", func() error {
		_, err := p.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return until(ctx, failed, "the garbage collector", func() error {
		_, err := p.client.CoreV1().ConfigMaps(orphan.Namespace).Get(ctx, orphan.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return errors.New("an object without an owner is still there")
	})
}

// createOrphan makes an object whose owner never existed.
func (p *probe) createOrphan(ctx context.Context) (*corev1.ConfigMap, error) {
	return p.client.CoreV1().ConfigMaps("kube-system").Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "controlplane-probe-",
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1",
				Kind:       "ConfigMap",
				Name:       "controlplane-probe",
				UID:        uuid.NewUUID(),
			}},
		},
	}, metav1.CreateOptions{})
}

// until tries again and again, and gives up when the context ends or a
// component does.
func until(ctx context.Context, failed <-chan error, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%w: still waiting for %s: %w", context.Cause(ctx), what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
