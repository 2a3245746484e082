package bootimage

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// identity tells whether a path still names the same, unchanged file. It includes ctime, which
// nothing can set back, so a file that was rewritten in place with the same size and mtime
// still differs.
type identity struct {
	Absent  bool   `json:",omitempty"`
	Device  uint64 `json:",omitempty"`
	Inode   uint64 `json:",omitempty"`
	Size    int64  `json:",omitempty"`
	MtimeNS int64  `json:",omitempty"`
	CtimeNS int64  `json:",omitempty"`
}

// identify returns the identity of the file at path. It follows links. A path that does not
// exist has an identity too, so that its appearance is a change.
func identify(path string) (identity, error) {
	var st unix.Stat_t
	err := syscalls.IgnoringEINTR(func() error { return unix.Stat(path, &st) })
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return identity{Absent: true}, nil
	case err != nil:
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return identityOf(&st), nil
}

func identifyFile(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := syscalls.IgnoringEINTR(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return identityOf(&st), nil
}

func identityOf(st *unix.Stat_t) identity {
	return identity{
		Device:  st.Dev,
		Inode:   st.Ino,
		Size:    st.Size,
		MtimeNS: st.Mtim.Nano(),
		CtimeNS: st.Ctim.Nano(),
	}
}

// witnesses holds every path on which a result depends, with its identity before it was read.
// The result is valid as long as none has changed.
type witnesses map[string]identity

// note adds path. Call it before path is read, so that a change in between is noticed later.
func (w witnesses) note(path string) (identity, error) {
	id, err := identify(path)
	if err != nil {
		return identity{}, err
	}
	if old, ok := w[path]; ok && old != id {
		return identity{}, fmt.Errorf("%s changed while it was being read", path)
	}
	w[path] = id
	return id, nil
}

func (w witnesses) unchanged() bool {
	for path, was := range w {
		if is, err := identify(path); err != nil || is != was {
			return false
		}
	}
	return true
}

// racy is how long after a change another change may leave the same timestamps. File times
// advance with the kernel's tick, which is at most 10 ms. Tests change it.
var racy = 50 * time.Millisecond

// settled says whether every witness changed long enough ago that a further change would be
// noticed.
func (w witnesses) settled(now time.Time) bool {
	for _, id := range w {
		age := now.Sub(time.Unix(0, id.CtimeNS))
		if !id.Absent && age > -racy && age < racy {
			return false
		}
	}
	return true
}
