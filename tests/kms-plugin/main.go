// Command kms-plugin is a Kubernetes KMS v2 plugin for tests: gRPC by Kubernetes'
// own service library (k8s.io/kms), real AES-256-GCM, keys in a directory. An
// apiserver can use it for encryption at rest just as well.
//
//	kms-plugin --socket FILE --keys DIR [--die-with-parent]
//
// The directory is its key store, and a test changes it while the plugin runs:
//
//	NAME.key   32 random bytes; NAME is the key_id
//	current    the NAME to encrypt with
//	unhealthy  if it is there, its text is what Status answers instead of "ok"
//
// At start a first key, "key-1", is made if the directory has none. To turn the
// key, write another NAME.key and then its name to current; to lose or disable a
// key, remove its file. A ciphertext opens with the key it was made with for as
// long as that file is there, and only with the annotation it was made with.
//
// It prints one line, "ready SOCKET", and runs until SIGTERM or SIGINT. A socket
// that an earlier one left behind is taken over.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/kms/pkg/service"
)

// The annotation carries what the ciphertext is bound to, so that a caller which
// loses or mixes up annotations is found out.
const (
	annotation = "bound.kms-plugin.claviger.dev"
	boundBytes = 16
	keyBytes   = 32

	connectLimit = 5 * time.Second
	startLimit   = 5 * time.Second
	stopLimit    = 2 * time.Second
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("kms-plugin: ")
	socket := flag.String("socket", "", "unix socket to serve on")
	keys := flag.String("keys", "", "directory of the keys")
	dieWithParent := flag.Bool("die-with-parent", false, "end when the parent process ends, however it ends")
	flag.Parse()
	if *socket == "" || *keys == "" || flag.NArg() > 0 {
		log.Fatal("give --socket and --keys, and nothing else")
	}
	if *dieWithParent {
		if err := watchParent(); err != nil {
			log.Fatal(err)
		}
	}
	if err := serve(*socket, store(*keys)); err != nil {
		log.Fatal(err)
	}
}

func serve(socket string, keys store) error {
	if err := keys.prepare(); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	server := service.NewGRPCService(socket, connectLimit, keys)
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	if err := awaitSocket(socket, ended); err != nil {
		return err
	}
	fmt.Println("ready", socket)
	select {
	case err := <-ended:
		return err
	case <-stop:
	}
	time.AfterFunc(stopLimit, server.Close)
	server.Shutdown()
	return nil
}

// awaitSocket returns when somebody listens.
func awaitSocket(socket string, ended <-chan error) error {
	for begun := time.Now(); time.Since(begun) < startLimit; {
		if connection, err := net.Dial("unix", socket); err == nil {
			return connection.Close()
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
	return fmt.Errorf("nobody listens on %s after %v", socket, startLimit)
}

// store is the directory of the keys.
type store string

var _ service.Service = store("")

func (s store) Status(context.Context) (*service.StatusResponse, error) {
	keyID, err := s.current()
	if err != nil {
		return nil, err
	}
	healthz := "ok"
	if words, err := os.ReadFile(s.path("unhealthy")); err == nil {
		healthz = string(words)
	}
	return &service.StatusResponse{Version: "v2", Healthz: healthz, KeyID: keyID}, nil
}

func (s store) Encrypt(_ context.Context, uid string, data []byte) (*service.EncryptResponse, error) {
	keyID, err := s.current()
	if err != nil {
		return nil, err
	}
	aead, err := s.aead(keyID)
	if err != nil {
		return nil, err
	}
	nonce, bound := make([]byte, aead.NonceSize()), make([]byte, boundBytes)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	if _, err := rand.Read(bound); err != nil {
		return nil, err
	}
	log.Printf("encrypted %s with %s", uid, keyID)
	return &service.EncryptResponse{
		Ciphertext:  aead.Seal(nonce, nonce, data, bound),
		KeyID:       keyID,
		Annotations: map[string][]byte{annotation: bound},
	}, nil
}

func (s store) Decrypt(_ context.Context, uid string, request *service.DecryptRequest) ([]byte, error) {
	aead, err := s.aead(request.KeyID)
	if err != nil {
		return nil, err
	}
	bound, there := request.Annotations[annotation]
	if !there || len(request.Annotations) != 1 || len(request.Ciphertext) < aead.NonceSize() {
		return nil, status.Error(codes.InvalidArgument, "this is not what Encrypt answered")
	}
	nonce, sealed := request.Ciphertext[:aead.NonceSize()], request.Ciphertext[aead.NonceSize():]
	data, err := aead.Open(nil, nonce, sealed, bound)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the ciphertext does not open")
	}
	log.Printf("decrypted %s with %s", uid, request.KeyID)
	return data, nil
}

// prepare makes the directory and a first key, unless they are there.
func (s store) prepare() error {
	if err := os.MkdirAll(string(s), 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(s.path("current")); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key := make([]byte, keyBytes)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	if err := os.WriteFile(s.path("key-1.key"), key, 0o600); err != nil {
		return err
	}
	return os.WriteFile(s.path("current"), []byte("key-1"), 0o600)
}

// current is the name of the key to encrypt with.
func (s store) current() (string, error) {
	text, err := os.ReadFile(s.path("current"))
	if err != nil {
		return "", status.Error(codes.Unavailable, "the key store cannot be read")
	}
	return strings.TrimSpace(string(text)), nil
}

func (s store) aead(keyID string) (cipher.AEAD, error) {
	if keyID == "" || keyID != filepath.Base(keyID) {
		return nil, status.Error(codes.InvalidArgument, "there is no key of that name")
	}
	key, err := os.ReadFile(s.path(keyID + ".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Error(codes.NotFound, "there is no key of that name")
	}
	if err != nil || len(key) != keyBytes {
		return nil, status.Error(codes.Unavailable, "the key cannot be read")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (s store) path(name string) string {
	return filepath.Join(string(s), name)
}
