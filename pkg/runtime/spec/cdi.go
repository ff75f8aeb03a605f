package spec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// setCDI adds the devices of the CDI_devices field and of the annotations cdi.k8s.io/* that device plugins set before
// the field existed. A device in both is added once.
func setCDI(in *Input, s *specs.Spec) error {
	var names []string
	for _, d := range in.Container.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	_, more, err := cdi.ParseAnnotations(in.Container.GetAnnotations())
	if err != nil {
		return invalid("annotations: %v", err)
	}
	var all []string
	for _, n := range append(names, more...) {
		if !parser.IsQualifiedName(n) {
			return invalid("device %q is not of the form vendor/class=name", n)
		}
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return nil
	}
	inject := in.CDI
	if inject == nil {
		inject = func(s *specs.Spec, names []string) error { return InjectCDI(s, names, in.Host.Defaults.CDIDirs...) }
	}
	if err := inject(s, all); err != nil {
		return fmt.Errorf("devices %v: %w", all, err)
	}
	return nil
}

// InjectCDI applies the named devices' edits as the CDI specs in dirs (none: /etc/cdi and /var/run/cdi) say, read anew:
// devices are rare and their specs change at any time.
func InjectCDI(s *specs.Spec, names []string, dirs ...string) error {
	options := []cdi.Option{cdi.WithAutoRefresh(false)}
	if len(dirs) > 0 {
		options = append(options, cdi.WithSpecDirs(dirs...))
	}
	cache, err := cdi.NewCache(options...)
	if err != nil {
		return err
	}
	missing, err := cache.InjectDevices(s, names...)
	if len(missing) > 0 {
		return fmt.Errorf("no CDI spec in %v has %v: %w", cache.GetSpecDirectories(), missing, errdefs.ErrNotFound)
	}
	return err
}
