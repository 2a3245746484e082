// Package mounts makes what a container has of the host's files: the shadow, which is what
// tools of the host see in the supervisor's mount namespace; the share, which the guest gets;
// and the block devices for the guest. It knows the plan of a container, and neither the
// virtual machine nor the supervisor.
//
// All mounts are made in the mount namespace of the calling process, which must not be the
// host's, and end with it. The order of calls is important:
//
//  1. LeaveHost, before anything is mounted: otherwise the mounts would appear on the host.
//  2. Make, while the host's paths still lead to the host's files. Make says for each of its
//     steps why it has its place.
//  3. OpenDisks, for the same reason.
//  4. Hooks of the host, if there are any, between Make and EnterShadow, because they need the
//     host's files. Then LeaveHost again, or what they have mounted would be unmounted together
//     with the host's tree.
//  5. EnterShadow, last: afterwards each path leads into the container's rootfs, which the
//     container can forge, so nothing may be opened or executed by path any more.
package mounts

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// Request says what Make has to mount. Make does not change it.
type Request struct {
	// ShadowDir and ShareDir are absolute paths of empty directories on the host.
	ShadowDir, ShareDir string
	// Shares are the container's files. The rootfs comes first.
	Shares []specconv.Share
	// Mounts are the guest's mounts. The source of one that is a share is below
	// specconv.GuestShareDir.
	Mounts []specs.Mount
	// Devices and Cwd are the guest's. Their files and directories are made in a read-only
	// rootfs, because the guest cannot make them there.
	Devices []specs.LinuxDevice
	Cwd     string
	// UserNS are the mappings of the container's user namespace; nil: it has none.
	UserNS *specconv.IDMaps
	IDMaps IDMaps
	// Hooks: before EnterShadow programs of the host will mount something below the rootfs, in
	// this mount namespace, and the guest gets that too.
	Hooks bool
}

// Make mounts the shadow on ShadowDir and the share on ShareDir. It returns the guest's mounts
// with changed options: see tmpfsMode.
func Make(r *Request) (guest []specs.Mount, err error) {
	q := *r
	q.Shares = slices.Clone(r.Shares)
	// Before the rootfs is bound anywhere: a mount passes on what is mounted below it later
	// only if it was shared when it was bound.
	if q.Hooks {
		if err := spreadRootfs(q.Shares[0].HostPath); err != nil {
			return nil, err
		}
	}
	// Before shadow and share, because both bind the overlays. Until the share is mounted its
	// directory is free.
	closeOverlays, err := mountOverlays(q.ShareDir, q.Shares)
	if err != nil {
		return nil, err
	}
	defer closeOverlays()
	// Before the share: the shadow makes missing mount points in the rootfs, also for the
	// guest, and in the share the rootfs may be read-only.
	guest, err = buildShadow(&q)
	if err != nil {
		return nil, err
	}
	// Last: the share covers the directory of the overlays and becomes read-only.
	if err := populateShare(&q); err != nil {
		return nil, err
	}
	return guest, nil
}

// LeaveHost makes every mount of this mount namespace a slave of the host's: what husk mounts
// here never appears on the host, and what the host unmounts later is unmounted here too, so
// that it does not stay busy as long as the container lives.
func LeaveHost() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave host mounts: %w", err)
	}
	return nil
}

// spreadRootfs prepares the rootfs for hooks: what they mount below it in this mount namespace
// appears in the shadow and in the share, which are slaves of it, and so in the guest, but
// never on the host.
func spreadRootfs(hostDir string) error {
	if err := unix.Mount(hostDir, hostDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind rootfs: %w", err)
	}
	// It becomes private first, so that it does not get what the host mounts below it later.
	if err := unix.Mount("", hostDir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the mounts of the host's rootfs: %w", err)
	}
	if err := unix.Mount("", hostDir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts of rootfs: %w", err)
	}
	return nil
}

// EnterShadow makes the shadow this process's root. Afterwards nothing may be opened or
// executed by path, because the container can forge its rootfs.
func EnterShadow(hostDir string) error {
	if err := unix.Chdir(hostDir); err != nil {
		return fmt.Errorf("enter rootfs: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter rootfs: pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("enter rootfs: detach the host's mounts: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter rootfs: %w", err)
	}
	return nil
}
