package bootimage

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// identity tells whether a path still names the same, unchanged file. ctime is
// in it because nothing can set it back: a file that was rewritten in place
// with its size and mtime kept is still seen as changed.
type identity struct {
	Absent  bool   `json:",omitempty"`
	Device  uint64 `json:",omitempty"`
	Inode   uint64 `json:",omitempty"`
	Size    int64  `json:",omitempty"`
	MtimeNS int64  `json:",omitempty"`
	CtimeNS int64  `json:",omitempty"`
}

// identify returns path's identity, following links. A path that is not there
// has an identity too: that it appears is a change.
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

// witnesses is every path a result depends on, each as it was before it was
// read. The result holds for as long as all of them are the same.
type witnesses map[string]identity

// note adds path. It must be called before the path is read: a change that
// comes between is then seen as a change.
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

// racy is how long after a change a second one may leave the same timestamps:
// file times advance by the kernel's tick, 10 ms at most. Changed by tests only.
var racy = 50 * time.Millisecond

// settled says whether no witness changed so recently that a further change
// could go unseen.
func (w witnesses) settled(now time.Time) bool {
	for _, id := range w {
		age := now.Sub(time.Unix(0, id.CtimeNS))
		if !id.Absent && age > -racy && age < racy {
			return false
		}
	}
	return true
}
