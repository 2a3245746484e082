package supervisor

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// face is a namespace that /proc/PID has to show. It is opened while paths lead to the host.
type face struct {
	specs.LinuxNamespace
	file *os.File
}

func openFace(namespaces []specs.LinuxNamespace) ([]face, error) {
	var all []face
	for _, ns := range namespaces {
		f, err := os.Open(ns.Path)
		if err != nil {
			return nil, fmt.Errorf("join %s namespace: %w", ns.Type, err)
		}
		all = append(all, face{ns, f})
	}
	return all, nil
}

// enterFace moves the main thread, on which it is called and which /proc/PID shows, into
// namespaces that the spec asks for and in which this process cannot work. Other threads of
// Go's runtime stay behind. In a mount namespace the thread's root becomes the rootfs, as with
// runc.
func enterFace(namespaces []face, rootfs string) error {
	for _, ns := range namespaces {
		if err := ns.enter(rootfs); err != nil {
			return fmt.Errorf("join %s namespace %s: %w", ns.Type, ns.Path, err)
		}
	}
	return nil
}

func (ns face) enter(rootfs string) error {
	defer ns.file.Close()
	if ns.Type != specs.MountNamespace {
		return os.NewSyscallError("setns", unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET))
	}
	if err := syscalls.JoinNamespaces(int(ns.file.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Chroot(rootfs); err != nil {
		return &os.PathError{Op: "chroot", Path: rootfs, Err: err}
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}
