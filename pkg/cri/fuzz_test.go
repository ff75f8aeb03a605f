package cri

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
	"github.com/seed-9a14075a/cri-server/pkg/streaming"
)

// emptyServer has no pods, no containers and no images, and nothing to make them with.
func emptyServer(t testing.TB) *Server {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	s := &Server{cfg: config.New(), log: log, version: "1.0.0", started: time.Now()}
	s.ends = s.newEnds()
	var err error
	must := func(e error) {
		t.Helper()
		if e != nil {
			t.Fatal(e)
		}
	}
	s.handlers, err = handler.NewTable([]handler.Handler{{Name: "native"}}, "native")
	must(err)
	s.images, err = imagestore.Open(imagestore.Config{Root: filepath.Join(dir, "images"), Snapshotter: "copy", Logger: log})
	must(err)
	t.Cleanup(func() { s.images.Close() })
	s.sandboxes, err = sandbox.Open(sandbox.Config{RecordsDir: filepath.Join(dir, "sandboxes"), StateDir: dir, NetnsDir: filepath.Join(dir, "netns"), Handlers: s.handlers, Log: log})
	must(err)
	s.containers, err = runtime.Open(runtime.Config{RecordsDir: filepath.Join(dir, "containers"), StateDir: dir, Images: s.images, Handlers: s.handlers, Log: log})
	must(err)
	s.streaming, err = streaming.New(streaming.Config{Address: "127.0.0.1:0", Log: log}, streams{s})
	must(err)
	t.Cleanup(s.streaming.Close)
	return s
}

// needsNode are the calls that ask the machine or a registry whatever the request says; of those that make something
// only the checks are tried.
var needsNode = map[string]bool{"Status": true, "RuntimeConfig": true, "UpdateRuntimeConfig": true, "RunPodSandbox": true, "PullImage": true}

// Any bytes that are a request are answered, if only with an error.
func FuzzRequests(f *testing.F) {
	methods := append(append([]grpc.MethodDesc{}, runtimeapi.RuntimeService_ServiceDesc.Methods...), runtimeapi.ImageService_ServiceDesc.Methods...)
	if len(methods) > 256 {
		f.Fatal("too many methods for a byte")
	}
	id, err := proto.Marshal(&runtimeapi.ContainerStatusRequest{ContainerId: "abc", Verbose: true})
	if err != nil {
		f.Fatal(err)
	}
	create, err := proto.Marshal(&runtimeapi.CreateContainerRequest{PodSandboxId: "abc", Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"}, LogPath: "a/b"}})
	if err != nil {
		f.Fatal(err)
	}
	for i := range methods {
		f.Add(byte(i), id)
		f.Add(byte(i), create)
		f.Add(byte(i), []byte{})
	}
	s := emptyServer(f)
	f.Fuzz(func(t *testing.T, method byte, b []byte) {
		var pod runtimeapi.PodSandboxConfig
		if proto.Unmarshal(b, &pod) == nil {
			_ = validateSandbox(&pod)
		}
		var ctr runtimeapi.ContainerConfig
		if proto.Unmarshal(b, &ctr) == nil {
			_ = validateContainer(&ctr)
		}
		m := methods[int(method)%len(methods)]
		if needsNode[m.MethodName] {
			return
		}
		decoded := false
		reply, err := m.Handler(s, context.Background(), func(request any) error {
			err := proto.Unmarshal(b, request.(proto.Message))
			decoded = err == nil
			return err
		}, nil)
		if !decoded {
			return
		}
		if err == nil {
			if _, err := proto.Marshal(reply.(proto.Message)); err != nil {
				t.Errorf("%s: the answer can't be sent: %v", m.MethodName, err)
			}
		}
		_ = toStatus(err)
	})
}
