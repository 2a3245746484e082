package fileserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A script works in a directory and writes down what it sees. It is run below a mount and
// in a bare directory, and must see the same.
type script struct {
	*testing.T
	dir   string
	lines []string
}

// path is that of a name in the script's directory.
func (s *script) path(name string) string { return filepath.Join(s.dir, name) }

// say writes a line down; errors by the names of their numbers.
func (s *script) say(format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok || arg == nil {
			args[i] = errorName(err)
		}
	}
	s.lines = append(s.lines, strings.ReplaceAll(fmt.Sprintf(format, args...), s.dir, "DIR"))
}

func errorName(err error) string {
	if err == nil {
		return "ok"
	}
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// look writes down what a stat of names says.
func (s *script) look(names ...string) {
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(s.path(name), &st); err != nil {
			s.say("%s: %v", name, err)
			continue
		}
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = -1 // the file system's own matter
		}
		s.say("%s: mode %o links %d owner %d:%d size %d rdev %#x", name, st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev)
	}
}

// A user is in whose name a part of a script runs.
type user struct {
	name     string
	uid, gid int
	groups   []int
	umask    int
	drop     []uint // capabilities of root's
}

// as runs do in a thread that is the user's.
func (s *script) as(u user, do func()) {
	s.Helper()
	done := make(chan error, 1)
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread is of no use to others
		if err := u.enter(); err != nil {
			done <- err
			return
		}
		do()
	}()
	if err := <-done; err != nil {
		s.Fatal(err)
	}
}

// enter makes the thread the user's. Package unix would change all threads.
func (u *user) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	unix.Umask(u.umask)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	groups := make([]uint32, len(u.groups)+1)
	for i, g := range u.groups {
		groups[i] = uint32(g)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(u.groups)), pointer(&groups[0]), 0); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid)); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)); errno != 0 {
		return errno
	}
	if u.uid != 0 {
		return nil
	}
	for _, c := range u.drop {
		data[c/32].Effective &^= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

// compare runs a script in both directories.
func compare(t *testing.T, mounted, bare, name string, run func(*script)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		var lines [2][]string
		for i, top := range []string{mounted, bare} {
			s := &script{T: t, dir: filepath.Join(top, name)}
			if err := os.Mkdir(s.dir, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.dir, 0o777); err != nil {
				t.Fatal(err)
			}
			run(s)
			lines[i] = s.lines
		}
		for i := range max(len(lines[0]), len(lines[1])) {
			got, want := "nothing", "nothing"
			if i < len(lines[0]) {
				got = lines[0][i]
			}
			if i < len(lines[1]) {
				want = lines[1][i]
			}
			if got != want {
				t.Errorf("line %d: %q, on the bare directory %q", i, got, want)
			}
		}
		if testing.Verbose() && !t.Failed() {
			t.Logf("%s", strings.Join(lines[0], "\n"))
		}
	})
}
