package create

import (
	"cmp"
	"maps"
	"slices"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/bootimage"
)

// debugKernel says which kernel guests boot and why. The search is made again: the cache
// keeps only what was found.
func debugKernel(s bootimage.Settings, image *bootimage.Image) {
	if !logrus.IsLevelEnabled(logrus.DebugLevel) {
		return
	}
	logrus.Debugf("guest boots %s (%s) with %s", image.Kernel, image.Release, image.Initrd)
	k, err := bootimage.Find(s)
	if err != nil {
		logrus.Debugf("guest kernel: %v", err) // it was there a moment ago
		return
	}
	why := map[string]string{
		bootimage.OriginConfigured: "the setting kernel names it", bootimage.OriginHusk: "husk's own, which is preferred",
		bootimage.OriginDistribution: "the newest of the distribution that can serve",
	}
	logrus.Debugf("guest kernel %s, modules %s: %s", k.Path, k.ModulesDir, why[k.Origin])
	for _, p := range k.PassedOver {
		logrus.Debugf("guest kernel passed over: %s", p)
	}
}

// debugPlace says where on the host the container is.
func (n *creation) debugPlace() {
	logrus.Debugf("state in %s, the container's process is %d", n.dir.Path, n.pidHolder().Pid)
	paths := n.container.Cgroup.Paths
	for _, controller := range slices.Sorted(maps.Keys(paths)) {
		logrus.Debugf("cgroup %s: %s", cmp.Or(controller, "v2"), paths[controller])
	}
}
