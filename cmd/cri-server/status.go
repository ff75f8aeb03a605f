package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// queryTimeout is for calls that answer from memory.
const queryTimeout = 10 * time.Second

// serverStatus is what status prints.
type serverStatus struct {
	Name         string               `json:"name"`
	Version      string               `json:"version"`
	Socket       string               `json:"socket"`
	CgroupDriver string               `json:"cgroup_driver"`
	Conditions   []condition          `json:"conditions"`
	Handlers     []string             `json:"handlers"`
	Pods         map[string]int       `json:"pods"`       // by state
	Containers   map[string]int       `json:"containers"` // by state
	Images       int                  `json:"images"`
	ImageBytes   uint64               `json:"image_bytes"`
	ImageDir     string               `json:"image_dir,omitempty"`
	Snapshotter  string               `json:"snapshotter,omitempty"`
	Operations   []operation.Timeline `json:"operations,omitempty"` // running; empty without the rights to ask
}

type condition struct {
	Type    string `json:"type"`
	Status  bool   `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

func newStatus() *cobra.Command {
	var e endpoint
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the running server is; exit code 1 if it is not ready",
		Args:  noArgs,
	}
	e.flags(cmd)
	outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		c, err := e.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), queryTimeout)
		defer cancel()
		s, err := readStatus(ctx, c, &e)
		if err != nil {
			return e.explain(err)
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), s)
		} else {
			err = s.write(cmd.OutOrStdout())
		}
		if err != nil {
			return err
		}
		for _, cond := range s.Conditions {
			if !cond.Status {
				return fmt.Errorf("%s is false: %s", cond.Type, cond.Message)
			}
		}
		return nil
	}
	return cmd
}

func readStatus(ctx context.Context, c *client, e *endpoint) (*serverStatus, error) {
	v, err := c.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, err
	}
	st, err := c.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	rc, err := c.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	if err != nil {
		return nil, err
	}
	s := &serverStatus{Name: v.GetRuntimeName(), Version: v.GetRuntimeVersion(), Socket: e.socket,
		CgroupDriver: rc.GetLinux().GetCgroupDriver().String(), Pods: map[string]int{}, Containers: map[string]int{}}
	for _, cond := range st.GetStatus().GetConditions() {
		s.Conditions = append(s.Conditions, condition{cond.GetType(), cond.GetStatus(), cond.GetReason(), cond.GetMessage()})
	}
	for _, h := range st.GetRuntimeHandlers() {
		if h.GetName() != "" {
			s.Handlers = append(s.Handlers, h.GetName())
		}
	}
	var images struct{ Snapshotter string }
	if json.Unmarshal([]byte(st.GetInfo()["images"]), &images) == nil { // of cri-server only
		s.Snapshotter = images.Snapshotter
	}
	if err := s.count(ctx, c); err != nil {
		return nil, err
	}
	// Only root may ask, and an old server may not answer; the rest is worth showing.
	a := admin.NewClient(filepath.Join(e.state, adminSocket))
	defer a.Close()
	s.Operations, _ = a.Operations(ctx)
	return s, nil
}

func (s *serverStatus) count(ctx context.Context, c *client) error {
	pods, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		s.Pods[stateText(p.GetState().String())]++
	}
	containers, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, ctr := range containers.GetContainers() {
		s.Containers[stateText(ctr.GetState().String())]++
	}
	images, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	s.Images = len(images.GetImages())
	fs, err := c.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return err
	}
	for _, f := range fs.GetImageFilesystems() {
		s.ImageBytes += f.GetUsedBytes().GetValue()
		s.ImageDir = f.GetFsId().GetMountpoint()
	}
	return nil
}

func (s *serverStatus) write(w io.Writer) error {
	t := table(w, s.Name, s.Version)
	row(t, "socket", s.Socket)
	row(t, "cgroup driver", stateText(s.CgroupDriver))
	for _, c := range s.Conditions {
		text := "yes"
		if !c.Status {
			text = "NO: " + c.Reason + ": " + c.Message
		}
		row(t, c.Type, text)
	}
	row(t, "handlers", join(s.Handlers))
	row(t, "pods", counts(s.Pods))
	row(t, "containers", counts(s.Containers))
	row(t, "images", fmt.Sprintf("%d, %s in %s", s.Images, sizeText(s.ImageBytes), s.ImageDir))
	for _, o := range s.Operations {
		row(t, "running", fmt.Sprintf("%s, at stage %q after %v", o.Key, o.At(), o.Total.Round(time.Millisecond)))
	}
	return t.Flush()
}

func counts(by map[string]int) string {
	var parts []string
	for _, state := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, fmt.Sprintf("%d %s", by[state], state))
	}
	if len(parts) == 0 {
		return "none"
	}
	return join(parts)
}
