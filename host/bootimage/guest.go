// Package bootimage makes what a virtual machine boots. It finds a kernel on the host, unpacks
// the ELF vmlinux in it, writes an initramfs with the agent and the modules that this kernel
// needs, and keeps both in a cache.
//
// The kernel and its modules are the host's own files. They are still read with limits, so that
// a damaged image causes an error and does not use up the host's memory.
package bootimage

import (
	"context"
	"io"
)

// Settings is what an administrator can configure about the guest's kernel.
type Settings struct {
	// Kernel is the path of a bzImage or an ELF vmlinux. Empty: it is searched for (see Find).
	Kernel string
	// Modules is the directory that holds modules.dep of Kernel, and is used only with it.
	// Empty: for a kernel in PREFIX/boot PREFIX/lib/modules/RELEASE if that exists (an unpacked
	// package), else /lib/modules/RELEASE.
	Modules string
	// CacheDir holds unpacked kernels and initramfs images. It is made with mode 0700. It is an
	// error if another user owns it or may write to it.
	CacheDir string
	// Root is put before every path that is searched. Empty: "/". For tests.
	Root string
}

// Values of Kernel.Origin.
const (
	OriginConfigured   = "configured"
	OriginHusk         = "husk"
	OriginDistribution = "distribution"
)

// Kernel is a kernel that was found. It is not unpacked yet.
type Kernel struct {
	Path    string // of a bzImage or an ELF vmlinux
	Release string // what uname -r prints in the guest
	// ModulesDir holds modules.dep. It is empty if there is no such directory; then everything
	// must be built in.
	ModulesDir string
	Origin     string // one of the constants above

	// PassedOver says why newer kernels were not used. Each entry is "PATH: reason".
	PassedOver []string

	modules []module // in load order, as Find has resolved them
}

// Image is what the hypervisor boots. The files are in the cache and must not be changed.
type Image struct {
	Kernel  string // path of an ELF vmlinux with a PVH entry
	Initrd  string // path of an uncompressed newc cpio archive
	Release string // what uname -r prints in the guest
	// Digest is the hex SHA-256 of everything that went in: kernel, agent and modules. Images
	// with equal digests boot the same guest.
	Digest string
}

// Prepare returns the guest's kernel and initramfs. They come from the cache if nothing that
// they were made of has changed, and are made otherwise. If several processes call it at once,
// one makes them. If progress is a terminal, the progress of unpacking is drawn on it; it may
// be nil.
func Prepare(ctx context.Context, s Settings, progress io.Writer) (*Image, error) {
	return prepare(ctx, s, Agent, progress)
}
