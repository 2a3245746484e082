package libcontainer

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions is a list of fstab-style options, sorted by the system call that takes each.
type mountOptions struct {
	// Flags are flags of mount(2), among them MS_BIND, MS_REC and MS_REMOUNT.
	Flags uintptr `json:"flags,omitempty"`
	// Set and Clear are attributes of the mount (MOUNT_ATTR_*) that the options name. A bind
	// keeps all other attributes of its source.
	Set   uint64 `json:"set,omitempty"`
	Clear uint64 `json:"clear,omitempty"`
	// RecursiveSet and RecursiveClear apply to the mounts below as well.
	RecursiveSet   uint64 `json:"rset,omitempty"`
	RecursiveClear uint64 `json:"rclear,omitempty"`
	// Propagation holds MS_SHARED, MS_PRIVATE and the like, each with or without MS_REC, in the
	// order of the options.
	Propagation []uintptr `json:"propagation,omitempty"`
	// CopyUp fills a new tmpfs with a copy of what it covers.
	CopyUp bool `json:"copyUp,omitempty"`
	// IDMap: an id-mapped mount was asked for. The caller of parseMountOptions refuses it.
	IDMap bool `json:"-"`
	// Data holds the options for the filesystem itself.
	Data string `json:"data,omitempty"`
}

// mountFlag says what one option changes: flags of mount(2), and attributes if it is about the
// mount and not the filesystem.
type mountFlag struct {
	clear bool
	flag  uintptr
	attr  uint64
}

// mountFlags is an array and not a map, because Go would build a map of this size at each start
// of the program. The init stage starts for every process, maybe under emulation.
var mountFlags = [...]struct {
	option string
	mountFlag
}{
	{"ro", mountFlag{false, unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}},
	{"rw", mountFlag{true, unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}},
	{"nosuid", mountFlag{false, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}},
	{"suid", mountFlag{true, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}},
	{"nodev", mountFlag{false, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}},
	{"dev", mountFlag{true, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}},
	{"noexec", mountFlag{false, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}},
	{"exec", mountFlag{true, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}},
	{"nodiratime", mountFlag{false, unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME}},
	{"diratime", mountFlag{true, unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME}},
	{"nosymfollow", mountFlag{false, unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW}},
	{"symfollow", mountFlag{true, unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW}},
	{"sync", mountFlag{flag: unix.MS_SYNCHRONOUS}},
	{"async", mountFlag{clear: true, flag: unix.MS_SYNCHRONOUS}},
	{"dirsync", mountFlag{flag: unix.MS_DIRSYNC}},
	{"mand", mountFlag{flag: unix.MS_MANDLOCK}},
	{"nomand", mountFlag{clear: true, flag: unix.MS_MANDLOCK}},
	{"lazytime", mountFlag{flag: unix.MS_LAZYTIME}},
	{"nolazytime", mountFlag{clear: true, flag: unix.MS_LAZYTIME}},
	{"iversion", mountFlag{flag: unix.MS_I_VERSION}},
	{"noiversion", mountFlag{clear: true, flag: unix.MS_I_VERSION}},
	{"silent", mountFlag{flag: unix.MS_SILENT}},
	{"loud", mountFlag{clear: true, flag: unix.MS_SILENT}},
	{"acl", mountFlag{flag: unix.MS_POSIXACL}},
	{"noacl", mountFlag{clear: true, flag: unix.MS_POSIXACL}},
	{"bind", mountFlag{flag: unix.MS_BIND}},
	{"rbind", mountFlag{flag: unix.MS_BIND | unix.MS_REC}},
	{"remount", mountFlag{flag: unix.MS_REMOUNT}},
	{"defaults", mountFlag{}},
}

func lookupMountFlag(option string) (mountFlag, bool) {
	for i := range mountFlags {
		if mountFlags[i].option == option {
			return mountFlags[i].mountFlag, true
		}
	}
	return mountFlag{}, false
}

// The access time modes are values of one field, not independent flags.
const atimeFlags = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME

func lookupAtime(option string) (flag uintptr, attr uint64, ok bool) {
	switch option {
	case "noatime":
		return unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME, true
	case "strictatime":
		return unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME, true
	case "relatime", "norelatime", "atime", "nostrictatime":
		return unix.MS_RELATIME, unix.MOUNT_ATTR_RELATIME, true
	}
	return 0, 0, false
}

func lookupPropagation(option string) (uintptr, bool) {
	switch option {
	case "private":
		return unix.MS_PRIVATE, true
	case "shared":
		return unix.MS_SHARED, true
	case "slave":
		return unix.MS_SLAVE, true
	case "unbindable":
		return unix.MS_UNBINDABLE, true
	case "rprivate":
		return unix.MS_PRIVATE | unix.MS_REC, true
	case "rshared":
		return unix.MS_SHARED | unix.MS_REC, true
	case "rslave":
		return unix.MS_SLAVE | unix.MS_REC, true
	case "runbindable":
		return unix.MS_UNBINDABLE | unix.MS_REC, true
	}
	return 0, false
}

// parseMountOptions sorts options as runc does. The last of two contradicting options holds,
// and an unknown option is passed to the filesystem.
func parseMountOptions(options []string) mountOptions {
	var m mountOptions
	var data []string
	for _, o := range options {
		if !m.add(o) {
			data = append(data, o)
		}
	}
	m.Data = strings.Join(data, ",")
	return m
}

func (m *mountOptions) add(o string) bool {
	if f, ok := lookupMountFlag(o); ok {
		if f.clear {
			m.Flags &^= f.flag
		} else {
			m.Flags |= f.flag
		}
		change(&m.Set, &m.Clear, f.attr, !f.clear)
		return true
	}
	if flag, attr, ok := lookupAtime(o); ok {
		m.Flags = m.Flags&^atimeFlags | flag
		setAtime(&m.Set, &m.Clear, attr)
		return true
	}
	if p, ok := lookupPropagation(o); ok {
		m.Propagation = append(m.Propagation, p)
		return true
	}
	switch o {
	case "tmpcopyup":
		m.CopyUp = true
		return true
	case "idmap", "ridmap":
		m.IDMap = true
		return true
	}
	return m.addRecursive(o)
}

// addRecursive adds an option such as rro: the name of an attribute with an r before it. It
// returns false if o is not one.
func (m *mountOptions) addRecursive(o string) bool {
	name, ok := strings.CutPrefix(o, "r")
	if !ok {
		return false
	}
	if f, ok := lookupMountFlag(name); ok && f.attr != 0 {
		change(&m.RecursiveSet, &m.RecursiveClear, f.attr, !f.clear)
		return true
	}
	if _, attr, ok := lookupAtime(name); ok {
		setAtime(&m.RecursiveSet, &m.RecursiveClear, attr)
		return true
	}
	return false
}

func change(set, clear *uint64, attr uint64, on bool) {
	if on {
		*set, *clear = *set|attr, *clear&^attr
	} else {
		*set, *clear = *set&^attr, *clear|attr
	}
}

// setAtime sets an access time mode. The kernel wants the whole field cleared when it changes.
func setAtime(set, clear *uint64, attr uint64) {
	*set = *set&^unix.MOUNT_ATTR__ATIME | attr
	*clear |= unix.MOUNT_ATTR__ATIME
}

// parsePropagation parses linux.rootfsPropagation. ok is false for an unknown word.
func parsePropagation(s string) (flags uintptr, ok bool) {
	if s == "" {
		return 0, true
	}
	return lookupPropagation(s)
}
