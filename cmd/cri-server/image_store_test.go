package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// storeCRI answers what the commands ask of the CRI out of a store.
type storeCRI struct {
	runtimeapi.UnimplementedImageServiceServer
	store *imagestore.Disk
}

func (s storeCRI) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	r := &runtimeapi.ListImagesResponse{}
	for _, i := range s.store.List() {
		r.Images = append(r.Images, &runtimeapi.Image{Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned})
	}
	return r, nil
}

func (s storeCRI) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	i, err := s.store.Get(r.GetImage().GetImage())
	if err != nil {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: i.ID}}, nil
}

// serveStore serves a store's admin socket and as much of the CRI as the image commands need.
func serveStore(t *testing.T) (root string, at []string) {
	t.Helper()
	dir := t.TempDir()
	root = filepath.Join(dir, "images")
	store, err := imagestore.Open(imagestore.Config{Root: root, Snapshotter: "copy"})
	if err != nil {
		t.Fatal(err)
	}
	listen := func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	g := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(g, storeCRI{store: store})
	h := &http.Server{Handler: admin.Handler(store, nil, nil, slog.New(slog.DiscardHandler))}
	cri, adm := listen("s"), listen(adminSocket)
	done := make(chan struct{}, 2)
	go func() { _ = g.Serve(cri); done <- struct{}{} }()
	go func() { _ = h.Serve(adm); done <- struct{}{} }()
	t.Cleanup(func() {
		g.Stop()
		_ = h.Close()
		<-done
		<-done
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return root, []string{"--socket", filepath.Join(dir, "s"), "--state", dir}
}

func runCommand(t *testing.T, cmd *cobra.Command, in io.Reader, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(in)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func serveImage(t *testing.T) (*imagetest.Server, imagetest.Built, string) {
	t.Helper()
	srv, err := imagetest.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	own := os.Getuid()
	built := imagetest.Image{Layers: []imagetest.Layer{
		imagetest.Files(map[string]imagetest.File{"etc/passwd": {Content: []byte("root"), UID: own, GID: os.Getgid()}}),
		imagetest.Files(map[string]imagetest.File{"bin/sh": {Content: make([]byte, 5000), UID: own, GID: os.Getgid()}}),
	}}.Build()
	srv.Put("app", "v1", built)
	return srv, built, srv.Host + "/app:v1"
}

// TestImageCommands walks through the life of an image.
func TestImageCommands(t *testing.T) {
	root, at := serveStore(t)
	srv, built, ref := serveImage(t)
	passwd := filepath.Join(root, "layers/sha256", built.Image.RootFS.DiffIDs[0].Encoded(), "fs/etc/passwd")
	copied := srv.Host + "/copy:v2"
	for _, step := range []struct {
		args   string
		want   []string
		fail   string
		before func()
	}{
		{args: "pull " + ref, want: []string{built.ID.String(), "pulled"}},
		{args: "pull -q " + ref, want: []string{built.ID.String()}},
		{args: "pull " + srv.Host + "/none:v1", fail: "manifest unknown"},
		{args: "verify", want: []string{"4 blobs and 2 layers checked, 0 problems"}},
		{args: "du", want: []string{"app:v1", built.ID.Encoded()[:12]}},
		{args: "tag " + ref + " " + copied},
		{args: "push " + copied},
		{args: "push " + srv.Host + "/unknown:v1", fail: "not found"},
		{args: "untag " + copied},
		{args: "untag " + copied, fail: "not found"},
		{args: "verify " + ref, fail: "the store is damaged", before: func() {
			if err := os.Truncate(passwd, 0); err != nil {
				t.Fatal(err)
			}
		}},
		{args: "repair", want: []string{"0 bytes instead of 4", "1 repaired"}},
		{args: "verify -o json", want: []string{`"problems": []`}},
		{args: "prune", want: []string{"0 B freed"}},
		{args: "pin " + ref},
		{args: "prune -a", want: []string{"0 B freed"}},
		{args: "pin --off " + ref},
		{args: "prune -a", want: []string{built.ID.String(), "kB freed"}},
		{args: "du -o json", want: []string{"[]"}},
	} {
		if step.before != nil {
			step.before()
		}
		out, err := runCommand(t, newRoot(), nil, append(append([]string{"image"}, strings.Fields(step.args)...), at...)...)
		if step.fail != "" {
			if err == nil || !strings.Contains(err.Error(), step.fail) {
				t.Errorf("%s: %v, want %q\n%s", step.args, err, step.fail, out)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", step.args, err, out)
		}
		for _, w := range step.want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: no %q in:\n%s", step.args, w, out)
			}
		}
	}
}

// TestCtr makes the calls of kind and minikube.
func TestCtr(t *testing.T) {
	root, at := serveStore(t)
	_, built, ref := serveImage(t)
	ctr := func(in io.Reader, line string) (string, error) {
		return runCommand(t, newCtr(), in, append(at, strings.Fields(line)...)...)
	}
	must := func(in io.Reader, line string) string {
		t.Helper()
		out, err := ctr(in, line)
		if err != nil {
			t.Fatalf("ctr %s: %v\n%s", line, err, out)
		}
		return out
	}
	must(nil, "--namespace=k8s.io content fetch "+ref)
	archive := must(nil, "-n=k8s.io images export - "+ref)
	must(nil, "-n k8s.io images rm "+ref)
	if out := must(nil, "--namespace=k8s.io images list -q"); out != "" {
		t.Errorf("left: %s", out)
	}
	out := must(strings.NewReader(archive), "--namespace=k8s.io images import --all-platforms --digests --snapshotter=overlayfs -")
	if !strings.Contains(out, "unpacking "+ref+" ("+built.ID.String()+")...done") {
		t.Error(out)
	}
	must(nil, "-n k8s.io images rm "+ref)
	must(strings.NewReader(archive), "-n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests -")
	if layers, err := os.ReadDir(filepath.Join(root, "layers/sha256")); err != nil || len(layers) > 0 {
		t.Errorf("--no-unpack left %d layers unpacked: %v", len(layers), err)
	}
	must(nil, "--namespace=k8s.io images tag --force "+ref+" docker.io/library/app:v1")
	if _, err := ctr(nil, "images tag "+ref+" docker.io/library/app:v1"); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Error(err)
	}
	out = must(nil, "-n k8s.io images list -q")
	for _, want := range []string{ref, "docker.io/library/app:v1", built.ID.String()} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if out := must(nil, "-n=k8s.io images ls name=="+ref); !strings.Contains(out, "REF") || strings.Contains(out, "library/app") {
		t.Error(out)
	}
	list, err := runCommand(t, newRoot(), nil, append([]string{"image", "list"}, at...)...)
	if err != nil || !strings.Contains(list, "pinned") {
		t.Errorf("%v\n%s", err, list)
	}
	for _, bad := range []string{"-n moby images list", "containers list", "images import /nonexistent", "images list labels==x", "content fetch --platform=linux/mips " + ref} {
		if out, err := ctr(nil, bad); err == nil {
			t.Errorf("%s: no error: %s", bad, out)
		}
	}
}

func TestContainerdShim(t *testing.T) {
	out, err := runCommand(t, newContainerd(), nil, "config", "dump")
	if err != nil || !strings.Contains(out, "version = 3\n") || !strings.Contains(out, "[plugins.\"io.containerd.cri.v1.images\"]\n    snapshotter = \"overlayfs\"\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := runCommand(t, newContainerd(), nil, "--version"); err != nil || !strings.HasPrefix(out, "containerd github.com/") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := runCommand(t, newContainerd(), nil, "config", "migrate"); err == nil {
		t.Error("no error")
	}
}

func TestBars(t *testing.T) {
	layers := []imagestore.LayerProgress{
		{Digest: "sha256:" + "aaaaaaaaaaaaaaaa", Received: 50, Size: 100}, {Digest: "sha256:bbbb", Size: 0}, {Digest: "sha256:cccc", Received: 3, Size: 3, Done: true},
	}
	for _, columns := range []int{1, 20, 60, 200} {
		for _, line := range (bars{columns: columns}).draw(layers) {
			if len(line) >= columns+1 {
				t.Errorf("%d columns: %q", columns, line)
			}
		}
	}
	out := strings.Join((bars{columns: 100}).draw(layers), "\n")
	if !strings.Contains(out, "aaaaaaaaaaaa  [====================                    ]      50 B of     100 B") || !strings.Contains(out, "1/3 layers") {
		t.Error(out)
	}
}
