package libcontainer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// applyProcess applies the process's settings to the stage's thread, except those that the
// parent applies from outside, and returns the environment for execve.
func applyProcess(p *processConfig) ([]string, error) {
	if err := applyScheduling(p); err != nil {
		return nil, err
	}
	for _, l := range p.Rlimits {
		if l.Resource == unix.RLIMIT_NOFILE {
			// Go raises RLIMIT_NOFILE at start, and at execve restores the old value over the
			// one that the parent has set by then, unless the program has set the limit itself.
			if err := keepNoFile(); err != nil {
				return nil, err
			}
		}
	}
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return nil, os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
		}
	}
	if err := chownStdio(p.UID); err != nil {
		return nil, err
	}
	// First as root, then as the user if root was refused: on a network filesystem either of
	// the two may lack the permission.
	chdirErr := enterCwd(p.Cwd)
	if chdirErr != nil && !errors.Is(chdirErr, fs.ErrPermission) {
		return nil, chdirErr
	}
	env := withHome(p.Env, p.UID)
	if !p.NoNewPrivs {
		// Loading a filter without no_new_privs takes CAP_SYS_ADMIN, which is dropped below.
		if err := loadSeccomp(p.Seccomp); err != nil {
			return nil, err
		}
	}
	if err := applyUser(p); err != nil {
		return nil, err
	}
	if chdirErr != nil {
		if err := enterCwd(p.Cwd); err != nil {
			return nil, err
		}
	}
	if err := applyCaps(p.Caps); err != nil {
		return nil, fmt.Errorf("unable to apply caps: %w", err)
	}
	unix.Umask(int(p.Umask & 0o777))
	return env, nil
}

// enterCwd changes the working directory and checks it at once: the seccomp filter that is
// loaded later may forbid getcwd.
func enterCwd(cwd string) error {
	if err := unix.Chdir(cwd); err != nil {
		return fmt.Errorf("chdir to cwd (%q) set in config.json failed: %w", cwd, err)
	}
	return checkCwd()
}

// checkCwd refuses a working directory outside of the container's mounts. A path such as
// /proc/self/fd/N could lead there by a leaked descriptor.
func checkCwd() error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(buf)
	if err == nil && (n == 0 || buf[0] != '/') { // "(unreachable)..."
		err = unix.ENOENT
	}
	if errors.Is(err, unix.ENOENT) {
		return errors.New("current working directory is outside of container mount namespace root -- possible container breakout detected")
	}
	if err != nil {
		return os.NewSyscallError("getcwd", err)
	}
	return nil
}

func applyScheduling(p *processConfig) error {
	if p.Scheduler != nil {
		if err := unix.SchedSetAttr(0, p.Scheduler, 0); err != nil {
			return fmt.Errorf("error setting scheduler: %w", err)
		}
	}
	if p.IOPriority != nil {
		if err := ioprioSet(*p.IOPriority); err != nil {
			return fmt.Errorf("failed to set io priority: %w", err)
		}
	}
	if p.Affinity != nil {
		if err := unix.SchedSetaffinity(0, p.Affinity); err != nil {
			return fmt.Errorf("set CPU affinity, of which this machine or the container's cpuset may have none: %w", err)
		}
	}
	if p.MemoryPolicy != nil {
		if err := unix.SetMemPolicy(p.MemoryPolicy.Mode, &p.MemoryPolicy.Nodes); err != nil {
			return fmt.Errorf("set memory policy: %w", err)
		}
	}
	if p.Personality != nil {
		if err := setPersonality(*p.Personality); err != nil {
			return os.NewSyscallError("personality", err)
		}
	}
	return nil
}

func keepNoFile() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	return os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l))
}

// chownStdio makes the user the owner of stdio, so that the process can open /dev/stdout and
// the like by path.
func chownStdio(uid uint32) error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return &os.PathError{Op: "fstat", Path: "fd " + strconv.Itoa(fd), Err: err}
		}
		if st.Uid == uid || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue
		}
		err := unix.Fchown(fd, int(uid), int(st.Gid))
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
			// Some files cannot change their owner. The descriptors work without it.
		default:
			return &os.PathError{Op: "fchown", Path: "fd " + strconv.Itoa(fd), Err: err}
		}
	}
	return nil
}

// applyUser drops the capabilities missing in the bounding set, and changes the ids. It keeps
// the permitted capabilities for applyCaps.
func applyUser(p *processConfig) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_KEEPCAPS", err)
	}
	if err := dropBounding(p.Caps.Bounding); err != nil {
		return fmt.Errorf("unable to apply bounding set: %w", err)
	}
	if err := setgroups(p.Groups); err != nil {
		return os.NewSyscallError("setgroups", err)
	}
	if err := setresgid(p.GID); err != nil {
		return os.NewSyscallError("setresgid", err)
	}
	if err := setresuid(p.UID); err != nil {
		return os.NewSyscallError("setresuid", err)
	}
	return nil
}

// maxCap is the number of capabilities that a mask can hold. Kernels have fewer.
const maxCap = 64

func dropBounding(keep uint64) error {
	for c := range uintptr(maxCap) {
		if keep&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // above the highest capability of this kernel
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// knownCaps returns the mask of the capabilities that this kernel has.
func knownCaps() uint64 {
	for c := range uintptr(maxCap) {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			return 1<<c - 1
		}
	}
	return ^uint64(0)
}

func applyCaps(s capSets) error {
	known := knownCaps()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		shift := 32 * i
		data[i].Effective = uint32(s.Effective & known >> shift)
		data[i].Permitted = uint32(s.Permitted & known >> shift)
		data[i].Inheritable = uint32(s.Inheritable & known >> shift)
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for c := range uintptr(maxCap) {
		if s.Ambient&known&(1<<c) == 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
		// The kernel returns EPERM for an ambient capability that is not both inheritable and
		// permitted. runc leaves it out too; the config.json that runc spec writes has three of
		// them.
		if err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("raise ambient capability %d: %w", c, err)
		}
	}
	return nil
}

// withHome adds HOME to an env that has none, from the container's /etc/passwd. It is "/" for a
// user who is not listed.
func withHome(env []string, uid uint32) []string {
	at := len(env)
	for i, kv := range env {
		if value, ok := strings.CutPrefix(kv, "HOME="); ok {
			if value != "" {
				return env
			}
			at = i
		}
	}
	home := "/"
	if h := passwdHome(uid); h != "" {
		home = h
	}
	if at == len(env) {
		return append(env, "HOME="+home)
	}
	env[at] = "HOME=" + home
	return env
}

func passwdHome(uid uint32) string {
	// O_NONBLOCK: an image may have a FIFO there, and opening it would block.
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return ""
	}
	if t, err := fileType(fd); err != nil || t != unix.S_IFREG {
		_ = unix.Close(fd)
		return ""
	}
	f := os.NewFile(uintptr(fd), "/etc/passwd")
	defer func() { _ = f.Close() }()
	users, err := user.ParsePasswdFilter(f, func(u user.User) bool { return u.Uid == int(uid) })
	if err != nil || len(users) == 0 || strings.IndexByte(users[0].Home, 0) >= 0 {
		return ""
	}
	return users[0].Home
}

// execError words the error as os/exec does, because engines match those words.
type execError struct {
	name string
	err  error
}

func (e *execError) Error() string { return "exec: " + strconv.Quote(e.name) + ": " + e.err.Error() }
func (e *execError) Unwrap() error { return e.err }

var (
	errNotFound = errors.New("executable file not found in $PATH")
	errDot      = errors.New("cannot run executable found relative to current directory")
)

// lookPath finds a command as the process would: with its PATH, ids and working directory.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", &execError{name, err}
		}
		return name, nil
	}
	path := lookupEnv(env, "PATH")
	if path == "" || name == "" || name == "." || name == ".." {
		return "", &execError{name, errNotFound}
	}
	for dir := range strings.SplitSeq(path, ":") {
		file := dir + "/" + name
		if !strings.HasPrefix(dir, "/") {
			file = "./" + strings.TrimPrefix(file, "/")
		}
		if executable(file) != nil {
			continue
		}
		if !strings.HasPrefix(dir, "/") {
			return "", &execError{name, errDot}
		}
		return file, nil
	}
	return "", &execError{name, errNotFound}
}

func lookupEnv(env []string, name string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

func executable(file string) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	if st.IsDir() {
		// Docker before version 23 recognizes only the second of the two texts.
		return fmt.Errorf("%w: %w", syscall.EISDIR, fs.ErrPermission)
	}
	err = unix.Faccessat2(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
	// The seccomp filter may not know faccessat2 and forbid it. Then execve reports the error.
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if st.Mode()&0o111 == 0 {
		return fs.ErrPermission
	}
	return nil
}
