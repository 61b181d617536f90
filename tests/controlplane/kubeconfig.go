package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubeconfigMark is the first line of each kubeconfig that this program writes,
// by which it knows the ones that it may replace and delete.
const kubeconfigMark = "# Written by Claviger's tests/controlplane, which also deletes it.\n"

// prepareKubeconfig makes sure that the administrator's kubeconfig does not
// exist before all is ready: its appearance says so. A kept state is an
// exception, since the file of the previous run is right all the time. A file
// that is not ours, such as a person's own, is left alone.
func prepareKubeconfig(path string, keep bool) error {
	content, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !bytes.HasPrefix(content, []byte(kubeconfigMark)):
		return fmt.Errorf("%s was not written by this program; delete it or name another --kubeconfig", path)
	case keep:
		return nil
	}
	return os.Remove(path)
}

// writeKubeconfig writes the administrator's kubeconfig.
func writeKubeconfig(path string, state *state, url string) error {
	return writeKubeconfigFor(path, state, url, adminFile)
}

// writeKubeconfigFor writes a kubeconfig that needs no other file: one that is
// copied elsewhere, or outlives the state, still says all there is to say.
func writeKubeconfigFor(path string, state *state, url, client string) error {
	authority, err := os.ReadFile(state.cert(authorityFile))
	if err != nil {
		return err
	}
	certificate, err := os.ReadFile(state.cert(client))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(state.key(client))
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["controlplane"] = &clientcmdapi.Cluster{Server: url, CertificateAuthorityData: authority}
	config.AuthInfos[client] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts["controlplane"] = &clientcmdapi.Context{Cluster: "controlplane", AuthInfo: client}
	config.CurrentContext = "controlplane"
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return writeFile(path, append([]byte(kubeconfigMark), content...))
}
