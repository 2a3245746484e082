package fileserver

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// An Export says which directory a client sees, and what it may do there.
type Export struct {
	// Root is an O_PATH descriptor of the directory; New keeps a copy of it.
	Root int
	// Proc is a descriptor of a procfs in which this process has a number; 0 opens /proc.
	Proc int

	// UIDs and GIDs say which ids of the client are which of the host; none: they are the
	// same. Ids that are not in a map cannot be given to files, and show as 65534.
	UIDs, GIDs []IDRange

	ReadOnly bool // every change is refused with EROFS
	Devices  bool // nodes of devices may be made; opened on the host they never are
	NoXattr  bool // extended attributes and ACLs are refused with EOPNOTSUPP
	// Trusted lets the client see and set attributes named trusted.*, if this process may.
	Trusted bool
	// LocalLocks leaves file locks to the client's kernel: they hold between its own
	// processes only, and no wait reaches the server.
	LocalLocks bool

	Cache  Cache
	Limits Limits
}

// An IDRange maps Count ids from Guest on to those from Host on.
type IDRange struct{ Guest, Host, Count uint32 }

// A Cache says what the client may keep without asking again. The zero value is nothing,
// but for pages of a file whose size and time of change are still what they were, which it
// asks for at each read.
type Cache struct {
	Entry    time.Duration // names
	Negative time.Duration // names that do not exist
	Attr     time.Duration // attributes
	Keep     bool          // pages and listings, from one open to the next
	Symlinks bool          // targets of symbolic links
	// Writeback lets writes wait in the client. Until they are written the host does not see
	// them, nor does SEEK_DATA, which Linux asks the server for without writing them first.
	Writeback bool
}

// Limits bounds what a client can make the server hold. A zero is the default.
type Limits struct {
	Nodes   int    // inodes known to the client, some 300 bytes of memory each; 4 million
	Handles int    // open files and directories; a fifth of this process's descriptors, at most 65,536
	Waits   int    // waits for locks at one time, a thread each; 64
	Threads int    // threads that make files in their users' names; 8
	Write   uint32 // bytes of data in a message, a multiple of 4096 up to 1 MiB; 1 MiB
	// Descriptors are how many inodes are held open; what this process's limit leaves beside
	// handles and as many owners of locks, at most a million.
	Descriptors int
}

func (l Limits) withDefaults() Limits {
	fill := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	files := 1024
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		files = int(min(limit.Cur, 1<<21))
	}
	const spare = 128 // what else the process has open, and calls for as long as they last
	fill(&l.Nodes, 4<<20)
	fill(&l.Handles, min(files/5, 1<<16))
	fill(&l.Descriptors, min(max(files-2*l.Handles-spare, 64), 1<<20))
	fill(&l.Waits, 64)
	fill(&l.Threads, 8)
	if l.Write == 0 || l.Write > 1<<20 {
		l.Write = 1 << 20
	}
	l.Write = max(l.Write&^4095, 4096)
	return l
}

// overflowID is what an id that is in no map shows as.
const overflowID = 65534

type idMap []IDRange

// host is the host's id for one of the client's; false where there is none.
func (m idMap) host(id uint32) (uint32, bool) {
	if id == math.MaxUint32 { // "no change" to the kernel
		return 0, false
	}
	if len(m) == 0 {
		return id, true
	}
	for _, r := range m {
		if id >= r.Guest && id-r.Guest < r.Count {
			return r.Host + (id - r.Guest), true
		}
	}
	return 0, false
}

// guest is the client's id for one of the host's.
func (m idMap) guest(id uint32) uint32 {
	if len(m) == 0 {
		return id
	}
	for _, r := range m {
		if id >= r.Host && id-r.Host < r.Count {
			return r.Guest + (id - r.Host)
		}
	}
	return overflowID
}
