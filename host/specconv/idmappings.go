package specconv

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/nsfork"
)

// IDMaps are the mappings of a user namespace.
type IDMaps struct {
	UID, GID []specs.LinuxIDMapping
}

// maxMappings is the kernel's limit for lines in uid_map.
const maxMappings = 340

// HostRoot returns the host's ids for the container's root.
func (m *IDMaps) HostRoot() (uid, gid uint32) {
	uid, _ = hostID(m.UID, 0)
	gid, _ = hostID(m.GID, 0)
	return uid, gid
}

// VMM returns the ids that the vmm of the container with this id has on the host. No process of
// the container has these ids, hardly anybody else has, and two containers rarely get the same.
// If the container has all ids, they are those of the container's root.
func (m *IDMaps) VMM(containerID string) (uid, gid uint32) {
	uid, gid = m.HostRoot()
	if free, ok := unmapped(m.UID, containerID); ok {
		uid = free
	}
	if free, ok := unmapped(m.GID, containerID); ok {
		gid = free
	}
	return uid, gid
}

// unmapped returns an id of the host that is not mapped. text decides which one.
func unmapped(maps []specs.LinuxIDMapping, text string) (uint32, bool) {
	// These are above the ids that useradd, engines and systemd use.
	const first, count = 0xc0000000, 0x30000000
	hash := fnv.New32a()
	hash.Write([]byte(text))
	last := first + hash.Sum32()%count
	for sees(maps, last) {
		for _, m := range maps {
			if last >= m.HostID && last-m.HostID < m.Size {
				if m.HostID == 0 {
					return 0, false
				}
				last = m.HostID - 1
			}
		}
	}
	return last, true
}

// Owns says whether both ids of the host are mapped.
func (m *IDMaps) Owns(uid, gid uint32) bool { return sees(m.UID, uid) && sees(m.GID, gid) }

// VMMText returns the mappings of the vmm's user namespace in the format of uid_map and
// gid_map. Each id of the container has there the number that it has on the host, because the
// guest uses these numbers. The only other id is the vmm's own.
func (m *IDMaps) VMMText(containerID string) (uids, gids string) {
	same := func(maps []specs.LinuxIDMapping, own uint32) string {
		var all []specs.LinuxIDMapping
		for _, m := range maps {
			all = append(all, specs.LinuxIDMapping{ContainerID: m.HostID, HostID: m.HostID, Size: m.Size})
		}
		if !sees(maps, own) {
			all = append(all, specs.LinuxIDMapping{ContainerID: own, HostID: own, Size: 1})
		}
		return idMapText(all)
	}
	uid, gid := m.VMM(containerID)
	return same(m.UID, uid), same(m.GID, gid)
}

// hostID returns the host's id for an id of the container. The result is false if it is not
// mapped.
func hostID(maps []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// validateIDMappings returns an error that names the field for mappings that the kernel would
// refuse.
func validateIDMappings(field string, maps []specs.LinuxIDMapping) error {
	if len(maps) > maxMappings {
		return fieldErrorf(field, "%d mappings are more than the kernel's %d", len(maps), maxMappings)
	}
	for i, m := range maps {
		at := index(field, i)
		const ids = math.MaxUint32 // 1<<32 - 1 is no valid id
		switch {
		case m.Size == 0:
			return fieldErrorf(at+".size", "must not be 0")
		case uint64(m.ContainerID)+uint64(m.Size) > ids:
			return fieldErrorf(at, "%d ids from %d on are beyond the last id, %d", m.Size, m.ContainerID, uint32(ids-1))
		case uint64(m.HostID)+uint64(m.Size) > ids:
			return fieldErrorf(at, "%d ids from %d on are beyond the last id, %d", m.Size, m.HostID, uint32(ids-1))
		}
		for _, other := range maps[:i] {
			if overlap(m.ContainerID, other.ContainerID, m.Size, other.Size) || overlap(m.HostID, other.HostID, m.Size, other.Size) {
				return fieldErrorf(at, "overlaps another mapping")
			}
		}
	}
	return nil
}

func overlap(a, b, sizeA, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
}

// validateUserNamespace uses runc's words.
func validateUserNamespace(spec *specs.Spec) error {
	l := spec.Linux
	if err := validateIDMappings("linux.uidMappings", l.UIDMappings); err != nil {
		return err
	}
	if err := validateIDMappings("linux.gidMappings", l.GIDMappings); err != nil {
		return err
	}
	field := ""
	switch {
	case len(l.UIDMappings) > 0:
		field = "linux.uidMappings"
	case len(l.GIDMappings) > 0:
		field = "linux.gidMappings"
	}
	i := slices.IndexFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
	switch {
	case i < 0 && field != "":
		return fieldErrorf(field, "user namespace mappings specified, but user namespace isn't enabled in the config")
	case i < 0:
		return nil
	case field == "" && l.Namespaces[i].Path == "":
		return fieldErrorf(index("linux.namespaces", i), "user namespaces enabled, but no namespace path to join nor mappings to apply specified")
	case field == "":
		return nil // the joined namespace has its own
	}
	return validateMapped(spec, &IDMaps{l.UIDMappings, l.GIDMappings})
}

// validateMapped checks that the ids of the container's processes are mapped.
func validateMapped(spec *specs.Spec, m *IDMaps) error {
	for _, ids := range []struct {
		kind, field string
		maps        []specs.LinuxIDMapping
		user        uint32
	}{
		{"uid", "linux.uidMappings", m.UID, spec.Process.User.UID},
		{"gid", "linux.gidMappings", m.GID, spec.Process.User.GID},
	} {
		if len(ids.maps) == 0 {
			return fieldErrorf(ids.field, "user namespaces enabled, but no %s mappings found", ids.kind)
		}
		if _, ok := hostID(ids.maps, 0); !ok {
			return fieldErrorf(ids.field, "user namespaces enabled, but no mapping found for %s 0", ids.kind)
		}
		if _, ok := hostID(ids.maps, ids.user); !ok {
			return fieldErrorf("process.user."+ids.kind, "cannot set %s to unmapped user in user namespace", ids.kind)
		}
	}
	return nil
}

// userNamespace sets the mappings of the container's user namespace: those of the spec, or of
// the namespace that it joins.
func (c *converter) userNamespace(spec *specs.Spec) error {
	l := spec.Linux
	i := slices.IndexFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
	if i < 0 {
		return nil
	}
	own := &IDMaps{UID: l.UIDMappings, GID: l.GIDMappings}
	c.plan.UserNS = own
	path := l.Namespaces[i].Path
	c.plan.Shadow.UserNS = &specs.LinuxNamespace{Type: specs.UserNamespace, Path: path}
	if path == "" {
		return nil
	}
	field := index("linux.namespaces", i) + ".path"
	joined, err := c.host.UserNamespace(path)
	if err != nil {
		return fieldErrorf(field, "failed to cache mappings for userns: %v", err)
	}
	if len(own.UID)+len(own.GID) > 0 && (!slices.Equal(own.UID, joined.UID) || !slices.Equal(own.GID, joined.GID)) {
		return fieldErrorf(field, "user namespaces enabled, but both namespace path and non-matching mapping specified -- you may only provide one")
	}
	c.plan.UserNS = joined
	return validateMapped(spec, joined)
}

// isIDMapped says whether a mount has id mappings, or uses the container's.
func isIDMapped(m specs.Mount) bool {
	return len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || lastOf(m.Options, "idmap", "ridmap") != ""
}

// validateIDMapped uses runc's words.
func validateIDMapped(field string, m specs.Mount, userNS bool) error {
	switch {
	case !isIDMapped(m):
		return nil
	case !isBind(m):
		return fieldErrorf(field, "id-mapped mounts are only supported for bind-mounts")
	case len(m.UIDMappings) == 0 && len(m.GIDMappings) == 0 && userNS:
		return nil
	case len(m.UIDMappings) == 0 || len(m.GIDMappings) == 0:
		return fieldErrorf(field, "id-mapped mounts must have both uid and gid mappings specified")
	}
	if err := validateIDMappings(field+".uidMappings", m.UIDMappings); err != nil {
		return err
	}
	return validateIDMappings(field+".gidMappings", m.GIDMappings)
}

// mountIDMap returns how the ids of a bind are mapped on the host. Without mappings of its own
// it has the container's.
func (c *converter) mountIDMap(m specs.Mount) *MountIDMap {
	if !isIDMapped(m) {
		return nil
	}
	ids := &MountIDMap{IDMaps: IDMaps{UID: m.UIDMappings, GID: m.GIDMappings}, Recursive: lastOf(m.Options, "idmap", "ridmap") == "ridmap"}
	user := c.plan.UserNS
	if user == nil {
		return ids
	}
	if len(m.UIDMappings) == 0 {
		ids.IDMaps = *user
	}
	// The vmm makes a file with its own id before it changes the owner to the one that the
	// guest asks for, so its id must be mapped. No process of the container has that id.
	uid, gid := user.VMM(c.env.ID)
	if !sees(user.UID, uid) {
		ids.UID = withHost(ids.UID, uid)
	}
	if !sees(user.GID, gid) {
		ids.GID = withHost(ids.GID, gid)
	}
	return ids
}

// sees says whether an id of the host is mapped.
func sees(maps []specs.LinuxIDMapping, host uint32) bool {
	return slices.ContainsFunc(maps, func(m specs.LinuxIDMapping) bool { return host >= m.HostID && host-m.HostID < m.Size })
}

// withHost adds a mapping for an id of the host that has none, to the highest id that is free.
func withHost(maps []specs.LinuxIDMapping, host uint32) []specs.LinuxIDMapping {
	if sees(maps, host) || len(maps) == maxMappings {
		return maps
	}
	last := uint32(math.MaxUint32 - 1)
	for _, taken := hostID(maps, last); taken; _, taken = hostID(maps, last) {
		for _, m := range maps {
			if last >= m.ContainerID && last-m.ContainerID < m.Size {
				if m.ContainerID == 0 {
					return maps // all ids are mapped
				}
				last = m.ContainerID - 1
			}
		}
	}
	return append(slices.Clone(maps), specs.LinuxIDMapping{ContainerID: last, HostID: host, Size: 1})
}

// Text returns the mappings in the format of uid_map and gid_map.
func (m *IDMaps) Text() (uids, gids string) {
	return idMapText(m.UID), idMapText(m.GID)
}

func idMapText(maps []specs.LinuxIDMapping) string {
	var text strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&text, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return text.String()
}

var errOwnUserNamespace = errors.New("it is the user namespace of the host, in which husk itself is")

// UserNamespace reads the mappings from inside the namespace.
func (thisHost) UserNamespace(path string) (*IDMaps, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	joined, err := f.Stat()
	if err != nil {
		return nil, err
	}
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return nil, err
	}
	if os.SameFile(joined, own) {
		return nil, &fs.PathError{Op: "join", Path: path, Err: errOwnUserNamespace}
	}
	uids, gids, err := nsfork.IDMaps(f)
	if errors.Is(err, unix.EINVAL) {
		return nil, &fs.PathError{Op: "join", Path: path, Err: errors.New("not a user namespace")}
	}
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", path, err)
	}
	m := &IDMaps{}
	if m.UID, err = parseIDMap(uids); err == nil {
		m.GID, err = parseIDMap(gids)
	}
	return m, err
}

// parseIDMap parses the text of uid_map or gid_map.
func parseIDMap(text string) ([]specs.LinuxIDMapping, error) {
	var maps []specs.LinuxIDMapping
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var m specs.LinuxIDMapping
		if _, err := fmt.Sscan(lines.Text(), &m.ContainerID, &m.HostID, &m.Size); err != nil {
			return nil, fmt.Errorf("read id mapping %s: %w", quote(lines.Text()), err)
		}
		maps = append(maps, m)
	}
	return maps, lines.Err()
}
