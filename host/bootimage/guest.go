// Package bootimage makes what a virtual machine boots: it finds a kernel on the
// host, unpacks the ELF vmlinux out of it, writes an initramfs of the agent and
// the modules that kernel needs, and keeps both in a cache.
//
// The kernel and its modules are the host's own files, yet they are read with
// limits: a damaged or hostile image costs an error, not the host's memory.
package bootimage

import (
	"context"
	"io"
)

// Settings is what an administrator may say about the guest's kernel.
type Settings struct {
	// Kernel is a bzImage or an ELF vmlinux. Empty: search (see Find).
	Kernel string
	// Modules is the directory that holds modules.dep of Kernel. Empty: for a
	// kernel in PREFIX/boot, PREFIX/lib/modules/RELEASE if that is there (an
	// unpacked package); else /lib/modules/RELEASE. It applies to a configured
	// Kernel only.
	Modules string
	// CacheDir holds unpacked kernels and initramfs images. Made with mode 0700;
	// refused when another user owns it or may write to it.
	CacheDir string
	// Root is put before every path of the search. Empty: "/". For tests.
	Root string
}

// Origins of a Kernel.
const (
	OriginConfigured   = "configured"
	OriginHusk         = "husk"
	OriginDistribution = "distribution"
)

// Kernel is a kernel that was found, not yet unpacked.
type Kernel struct {
	Path    string // bzImage or ELF vmlinux
	Release string // as uname -r says it in the guest
	// ModulesDir holds modules.dep; empty when there is no such directory and
	// everything must be built in.
	ModulesDir string
	Origin     string // one of the Origins

	// PassedOver is why newer kernels were not taken, "PATH: reason" each.
	PassedOver []string

	modules []module // what Find has already resolved, in load order
}

// Image is what the hypervisor boots. The files are in the cache and must not
// be changed.
type Image struct {
	Kernel  string // path of the ELF vmlinux, with a PVH entry
	Initrd  string // path of the initramfs, an uncompressed newc cpio archive
	Release string // as uname -r says it in the guest
	// Digest is the hex SHA-256 over all that went in: kernel, agent, modules.
	// Equal digests boot into the same guest.
	Digest string
}

// Prepare returns the guest's kernel and initramfs, from the cache if nothing
// they were made of has changed, else made anew. Runs that race make them once.
// Progress of the unpacking is drawn on progress if that is a terminal; nil or
// anything else stays silent.
func Prepare(ctx context.Context, s Settings, progress io.Writer) (*Image, error) {
	return prepare(ctx, s, Agent, progress)
}
