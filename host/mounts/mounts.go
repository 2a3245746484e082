// Package mounts makes what a container has of the host's files: the shadow, which is the
// tree that a tool of the host finds in the supervisor's mount namespace, the share, which
// is the tree that is exported to the guest, and the block devices that the guest is given.
// It knows the plan of a container, and neither virtual machine nor supervisor.
//
// All of it is done in the mount namespace of the calling process, which must be one of its
// own, and goes with that namespace. The order matters:
//
//  1. LeaveHost, before anything is mounted: or the mounts would show on the host.
//  2. Make, while the host's paths still lead to the host's files. Make says at each of its
//     steps why the step has its place.
//  3. OpenDisks, likewise.
//  4. Hooks of the host, if there are any, between Make and EnterShadow: they need the
//     host's tree. LeaveHost once more after them, or what they have mounted would be let
//     go of with the host's tree.
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

// Request is what Make is to mount. Nothing in it is changed.
type Request struct {
	// ShadowDir and ShareDir are empty directories of the host, absolute.
	ShadowDir, ShareDir string
	// Shares are the container's files, the rootfs first.
	Shares []specconv.Share
	// Mounts are the guest's, whose sources are below specconv.GuestShareDir where they
	// are shares.
	Mounts []specs.Mount
	// Devices and Cwd are the guest's. What they name is made in a rootfs that is
	// read-only, because the guest cannot make it there.
	Devices []specs.LinuxDevice
	Cwd     string
	// UserNS are the mappings of the container's user namespace; nil: it has none.
	UserNS *specconv.IDMaps
	IDMaps IDMaps
	// Hooks says that programs of the host will mount something below the rootfs, in this
	// mount namespace, before EnterShadow: the guest is to have that, too.
	Hooks bool
}

// Make mounts the shadow at ShadowDir and the share at ShareDir. It returns the guest's
// mounts as they are to be made now: see tmpfsMode.
func Make(r *Request) (guest []specs.Mount, err error) {
	q := *r
	q.Shares = slices.Clone(r.Shares)
	// Before the rootfs is bound anywhere: only a mount that is shared when it is bound
	// passes on what is mounted below it later.
	if q.Hooks {
		if err := spreadRootfs(q.Shares[0].HostPath); err != nil {
			return nil, err
		}
	}
	// Before shadow and share, which both bind the overlays. The share's directory is free
	// until the share is mounted there.
	closeOverlays, err := mountOverlays(q.ShareDir, q.Shares)
	if err != nil {
		return nil, err
	}
	defer closeOverlays()
	// Before the share: the shadow makes missing mount points in the rootfs, for the guest
	// as well, and in the share the rootfs may be read-only.
	guest, err = buildShadow(&q)
	if err != nil {
		return nil, err
	}
	// Last: it covers the overlays' place, and is sealed.
	if err := populateShare(&q); err != nil {
		return nil, err
	}
	return guest, nil
}

// LeaveHost makes every mount of this mount namespace a slave of the host's: what husk
// mounts here never shows on the host, and what the host unmounts later is let go here
// too instead of staying busy for as long as the container lives.
func LeaveHost() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave host mounts: %w", err)
	}
	return nil
}

// spreadRootfs prepares the rootfs, on the host, for hooks: what they mount below
// it, from inside of this mount namespace, appears in the shadow and in the share,
// which are made slaves of it, and so in the guest, but never on the host.
func spreadRootfs(hostDir string) error {
	if err := unix.Mount(hostDir, hostDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind rootfs: %w", err)
	}
	// First of all alone: what the host mounts below it later is not to come along.
	if err := unix.Mount("", hostDir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the mounts of the host's rootfs: %w", err)
	}
	if err := unix.Mount("", hostDir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts of rootfs: %w", err)
	}
	return nil
}

// EnterShadow makes the shadow this process's root. From here on nothing may be
// opened or executed by path: the rootfs is the container's to forge.
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
