// Command testprog runs inside containers under test and does what busybox cannot: it reports a
// process's exact settings, tests a filesystem call by call, and prints each signal it gets. It
// uses only the standard library and is small, because it is copied into every test's rootfs.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

var commands = map[string]func(args []string) error{
	"signals":          signals,
	"blocks":           blocks,
	"dns":              dns,
	"draws":            draws,
	"filework":         fileWork,
	"network":          netWork,
	"status":           status,
	"files":            files,
	"fds":              openFiles,
	"manager":          manager,
	"memory":           memory,
	"notify":           notify,
	"pattern":          pattern,
	"flood":            flood,
	"frames":           frames,
	"offloaded-frames": offloadedFrames,
	"serve":            serve,
	"tcp":              tcp,
	"udp":              udp,
	"activate":         activate,
	"activated":        activated,
	"append":           appendLines,
	"ask":              ask,
	"front":            front,
	"knock":            knock,
	"store":            store,
	"syscall":          systemCalls,
	"trylock":          func(args []string) error { return tryLock(args[0]) },
	"tty":              tty,
	"vendor":           vendor,
}

func main() {
	if os.Getpid() == 1 && len(os.Args) == 1 && os.Args[0] == "/init" {
		if os.Getenv(guestVariable) == "guest" {
			guestInit()
		}
		floorInit()
		return
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: testprog COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "testprog:", err)
		os.Exit(1)
	}
}

// signals prints the number of each signal it gets, until it is killed.
func signals([]string) error {
	ch := make(chan os.Signal, 64)
	all := make([]os.Signal, 0, 64)
	for n := 1; n <= 64; n++ {
		// 23 is SIGURG, which Go's scheduler sends to itself.
		if n != int(syscall.SIGKILL) && n != int(syscall.SIGSTOP) && n != int(syscall.SIGURG) {
			all = append(all, syscall.Signal(n))
		}
	}
	signal.Notify(ch, all...)
	fmt.Println("ready")
	for s := range ch {
		fmt.Println("signal", int(s.(syscall.Signal)))
	}
	return nil
}

// openFiles prints "FD TARGET" for each open descriptor.
func openFiles([]string) error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		target, err := os.Readlink("/proc/self/fd/" + name)
		// Descriptors that this process has opened itself: the directory, the poller of Go's
		// runtime, and the cgroup's CPU limit that the runtime reads.
		if err != nil || name == strconv.Itoa(int(dir.Fd())) || target == "anon_inode:[eventpoll]" ||
			target == "anon_inode:[eventfd]" || strings.HasPrefix(target, "/sys/fs/cgroup/") {
			continue
		}
		fmt.Println(name, target)
	}
	return nil
}

// memory uses the given number of MiB and says so.
func memory(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	b, err := syscall.Mmap(-1, 0, n<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Println("touched", n)
	return nil
}

func number(args []string, i int) (int, error) {
	if i >= len(args) {
		return 0, fmt.Errorf("argument %d is missing", i+1)
	}
	return strconv.Atoi(args[i])
}

// systemCalls makes each system call of the form NUMBER or NUMBER,ARGUMENT... and prints their
// error numbers on one line.
func systemCalls(calls []string) error {
	var line []string
	for _, call := range calls {
		var n [7]uintptr
		for i, field := range strings.SplitN(call, ",", len(n)) {
			v, err := strconv.ParseUint(field, 0, 64)
			if err != nil {
				return err
			}
			n[i] = uintptr(v)
		}
		_, _, errno := syscall.RawSyscall6(n[0], n[1], n[2], n[3], n[4], n[5], n[6])
		line = append(line, strconv.Itoa(int(errno)))
	}
	fmt.Println(strings.Join(line, " "))
	return nil
}
