package qemu

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// setModeAsQEMU does what fchmodat_nofollow of QEMU 7.2 does.
func setModeAsQEMU(dirFD int, name string, mode uint32) error {
	fd, err := unix.Openat(dirFD, name, unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return unix.ENXIO
	}
	path, err := unix.BytePtrFromString("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	// A direct call, because Go's Chmod calls fchmodat.
	if _, _, errno := unix.Syscall(unix.SYS_CHMOD, uintptr(unsafe.Pointer(path)), uintptr(mode), 0); errno != 0 {
		return fmt.Errorf("chmod: %w", errno)
	}
	return nil
}

// vmmMain plays a vmm that makes special files in a directory from many threads at once. It
// prints what goes wrong.
func vmmMain(dir string) error {
	dirFD, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_PATH, 0)
	if err != nil {
		return err
	}
	var threads sync.WaitGroup
	for i := range 8 {
		threads.Go(func() {
			runtime.LockOSThread()
			for k := range 20 {
				name := fmt.Sprintf("node-%d-%d", i, k)
				kind := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG, unix.S_IFDIR}[k%4]
				var err error
				if kind == unix.S_IFDIR {
					err = unix.Mkdirat(dirFD, name, 0o700)
				} else {
					err = unix.Mknodat(dirFD, name, kind|0o600, 0)
				}
				if err == nil {
					err = setModeAsQEMU(dirFD, name, uint32(0o1600+8*i+k%4))
				}
				if err != nil {
					fmt.Println(name, err)
				}
			}
		})
	}
	threads.Wait()
	if err := setModeAsQEMU(dirFD, "symlink", 0o777); !errors.Is(err, unix.ENXIO) {
		fmt.Println("symlink:", err)
	}
	if err := setModeAsQEMU(dirFD, "missing", 0o777); !errors.Is(err, unix.ENOENT) {
		fmt.Println("missing:", err)
	}
	return nil
}

// TestSpecialFilesVMM is not a test: it is the vmm process of TestSpecialFiles.
func TestSpecialFilesVMM(t *testing.T) {
	if flag.NArg() != 1 {
		t.Skip("not a vmm")
	}
	if err := vmmMain(flag.Arg(0)); err != nil {
		t.Fatal(err)
	}
}

func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("node-0-0", filepath.Join(dir, "symlink")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, far, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var files []*os.File
	special, err := newSpecialFiles(func(f *os.File) int {
		files = append(files, f)
		return 3
	})
	if err != nil {
		t.Fatal(err)
	}
	vmm := &launch{
		cfg:   hypervisor.Config{Binary: self, ShareDir: dir},
		argv:  func(bool) []string { return []string{"-test.run=^TestSpecialFilesVMM$", "-test.v", dir} },
		files: files, output: far, watch: newWatcher(special, nil),
	}
	p, err := vmm.start()
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(out)
	if err != nil {
		p.kill()
		t.Fatalf("the vmm hangs: %v", err)
	}
	<-p.exited
	if p.err != nil || strings.Contains(string(said), "node") || strings.Contains(string(said), "symlink:") || strings.Contains(string(said), "missing:") || strings.Contains(string(said), "husk:") {
		t.Fatalf("the vmm: %v\n%s", p.err, said)
	}
	for i := range 8 {
		for k := range 20 {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, fmt.Sprintf("node-%d-%d", i, k)), &st); err != nil {
				t.Fatal(err)
			}
			if want := uint32(0o1600 + 8*i + k%4); st.Mode&0o7777 != want {
				t.Errorf("mode of node %d of thread %d is %o, want %o", k, i, st.Mode&0o7777, want)
			}
		}
	}
}

// TestHeldAreBounded: a vmm whose threads each name a special file and end uses a bounded
// number of this process's descriptors.
func TestHeldAreBounded(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	dirFD, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirFD)
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	nobody, err := os.Open(os.DevNull) // nobody receives the answers
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	s := &specialFiles{held: map[uint32]*os.File{}}
	name := []byte("fifo\x00")
	answered := 0
	for tid := range uint32(3 * maxHeld) {
		n := notification{tid: tid, nr: unix.SYS_OPENAT, args: [6]uint64{uint64(dirFD), uint64(uintptr(unsafe.Pointer(&name[0])))}}
		if s.handle(&listener{nobody}, target{pid: os.Getpid(), pidfd: pidfd}, n) {
			answered++
		}
	}
	runtime.KeepAlive(name)
	if answered != maxHeld || len(s.held) != maxHeld {
		t.Errorf("%d threads were answered, %d files are held, want %d of each", answered, len(s.held), maxHeld)
	}
	for _, node := range s.held {
		node.Close()
	}
}
