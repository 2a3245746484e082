package qemu

import (
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/linux/syscalls"
)

// seccompData is struct seccomp_data.
type seccompData struct {
	arch, nr uint32
	args     [6]uint64
}

// verdict runs a filter as the kernel does.
func verdict(t *testing.T, filter *bpf.VM, d seccompData) uint32 {
	t.Helper()
	raw := make([]byte, 64)
	put := func(off int, v uint32) { // the interpreter reads big endian, and the kernel native words
		for i := range 4 {
			raw[off+i] = byte(v >> (24 - 8*i))
		}
	}
	put(offNumber, d.nr)
	put(offArch, d.arch)
	for i, a := range d.args {
		put(offArgs+argSize*i, uint32(a))
		put(offArgs+argSize*i+wordSize, uint32(a>>32))
	}
	got, err := filter.Run(raw)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func newVM(t *testing.T, cfg hypervisor.Config, watched watch, listener bool) *bpf.VM {
	t.Helper()
	code, err := newFilter(cfg, watched, listener)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscalls.AssembleFilter(code); err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

const (
	allow  = unix.SECCOMP_RET_ALLOW
	notify = unix.SECCOMP_RET_USER_NOTIF
	kill   = unix.SECCOMP_RET_KILL_PROCESS
	native = unix.AUDIT_ARCH_X86_64
)

// TestFilterOfArguments makes calls that are allowed with some arguments only.
func TestFilterOfArguments(t *testing.T) {
	watched := newWatcher(&specialFiles{slot: 8}, &ramFile{}).watched()
	full := hypervisor.Config{Accel: hypervisor.KVM, Vsock: true, NICs: make([]hypervisor.NIC, 1), Disks: make([]hypervisor.Disk, 1)}
	cwd := int64(unix.AT_FDCWD)
	for name, c := range map[string]struct {
		cfg     hypervisor.Config
		data    seccompData
		with    uint32 // the verdict with a listener
		without uint32
	}{
		"name a file":          {data: seccompData{native, unix.SYS_OPENAT, [6]uint64{5, 0, unix.O_PATH | unix.O_NOFOLLOW}}, with: notify, without: allow},
		"name a directory":     {data: seccompData{native, unix.SYS_OPENAT, [6]uint64{5, 0, unix.O_PATH | unix.O_DIRECTORY}}, with: allow, without: allow},
		"open a guest's file":  {data: seccompData{native, unix.SYS_OPENAT, [6]uint64{5, 0, unix.O_RDWR}}, with: allow, without: allow},
		"open the template":    {data: seccompData{native, unix.SYS_OPENAT, [6]uint64{uint64(cwd), 0, unix.O_RDWR}}, with: notify, without: allow},
		"open it, 32 bits":     {data: seccompData{native, unix.SYS_OPENAT, [6]uint64{uint64(uint32(cwd)), 0, unix.O_RDWR | unix.O_CLOEXEC}}, with: notify, without: allow},
		"read a library":       {data: seccompData{native, unix.SYS_OPENAT, [6]uint64{uint64(cwd), 0, unix.O_RDONLY}}, with: allow, without: allow},
		"close the slot":       {data: seccompData{native, unix.SYS_CLOSE, [6]uint64{8}}, with: notify, without: allow},
		"close another":        {data: seccompData{native, unix.SYS_CLOSE, [6]uint64{9}}, with: allow, without: allow},
		"chmod":                {data: seccompData{native, unix.SYS_CHMOD, [6]uint64{0, 0o644}}, with: notify, without: allow},
		"thread":               {data: seccompData{native, unix.SYS_CLONE, [6]uint64{0x3d0f00}}, with: allow, without: allow},
		"process":              {data: seccompData{native, unix.SYS_CLONE, [6]uint64{uint64(unix.SIGCHLD)}}, with: refuse(unix.EPERM), without: refuse(unix.EPERM)},
		"thread in namespaces": {data: seccompData{native, unix.SYS_CLONE, [6]uint64{unix.CLONE_THREAD | unix.CLONE_NEWUSER}}, with: refuse(unix.EPERM), without: refuse(unix.EPERM)},
		"clone3":               {data: seccompData{native, unix.SYS_CLONE3, [6]uint64{}}, with: refuse(unix.ENOSYS), without: refuse(unix.ENOSYS)},
		"outlive the parent":   {data: seccompData{native, unix.SYS_PRCTL, [6]uint64{unix.PR_SET_PDEATHSIG}}, with: refuse(unix.EPERM), without: refuse(unix.EPERM)},
		"name a thread":        {data: seccompData{native, unix.SYS_PRCTL, [6]uint64{unix.PR_SET_NAME}}, with: allow, without: allow},
		"tap, offload":         {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.TUNSETOFFLOAD}}, with: allow, without: allow},
		"no tap, offload":      {data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.TUNSETOFFLOAD}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"tap, persist":         {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.TUNSETPERSIST}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"tap, owner":           {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.TUNSETOWNER}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"tap, another":         {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.TUNSETIFF}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"tap, address":         {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.SIOCSIFHWADDR}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"terminal, type":       {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.TIOCSTI}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"kvm":                  {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, kvmGetAPIVersion}}, with: allow, without: allow},
		"no kvm":               {data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, kvmGetAPIVersion}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"vhost":                {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, vhostVsockSetGuestCID}}, with: allow, without: allow},
		"no vhost":             {data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, vhostVsockSetGuestCID}}, with: refuse(unix.ENOTTY), without: refuse(unix.ENOTTY)},
		"disk":                 {cfg: full, data: seccompData{native, unix.SYS_IOCTL, [6]uint64{1, unix.BLKGETSIZE64}}, with: allow, without: allow},
		"return RAM, clone":    {cfg: hypervisor.Config{RAMFile: "/ram"}, data: seccompData{native, unix.SYS_FALLOCATE, [6]uint64{9, 3}}, with: refuse(0), without: refuse(0)},
		"return RAM, template": {cfg: hypervisor.Config{RAMFile: "/ram", RAMShared: true}, data: seccompData{native, unix.SYS_FALLOCATE, [6]uint64{9, 3}}, with: allow, without: allow},
		"execve":               {data: seccompData{native, unix.SYS_EXECVE, [6]uint64{}}, with: notify, without: allow},
		"a filter of its own":  {data: seccompData{native, unix.SYS_SECCOMP, [6]uint64{}}, with: refuse(unix.EPERM), without: allow},
		"x32":                  {data: seccompData{native, x32Bit | unix.SYS_READ, [6]uint64{}}, with: kill, without: kill},
		"i386":                 {data: seccompData{unix.AUDIT_ARCH_I386, 3, [6]uint64{}}, with: kill, without: kill},
	} {
		t.Run(name, func(t *testing.T) {
			if got := verdict(t, newVM(t, c.cfg, watched, true), c.data); got != c.with {
				t.Errorf("%s: %#x, want %#x", name, got, c.with)
			}
			if got := verdict(t, newVM(t, c.cfg, watched, false), c.data); got != c.without {
				t.Errorf("%s, without a listener: %#x, want %#x", name, got, c.without)
			}
		})
	}
}

// TestFilterAllowsOnlyTheList makes every call of the kernel's table.
func TestFilterAllowsOnlyTheList(t *testing.T) {
	var listed []string
	for _, group := range allowed {
		if group.why == "" {
			t.Errorf("no reason is given for %v", group.calls)
		}
		for _, c := range group.calls {
			listed = append(listed, c.name)
		}
	}
	// Calls that must never be allowed, however the lists change.
	never := []string{
		"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "open_by_handle_at", "name_to_handle_at",
		"mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "mount_setattr", "pivot_root", "chroot",
		"bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "perf_event_open", "keyctl", "add_key", "request_key",
		"setns", "unshare", "socket", "socketpair", "bind", "connect", "listen", "accept", "accept4", "execveat", "memfd_create",
		"kexec_load", "reboot", "personality", "kill", "tkill", "rt_sigqueueinfo", "setuid", "capset", "setsid", "fork", "vfork",
		"init_module", "iopl", "ioperm", "quotactl", "sched_setscheduler", "setpriority", "mlock", "mlockall",
	}
	watched := newWatcher(&specialFiles{slot: 8}, &ramFile{}).watched()
	for _, listener := range []bool{true, false} {
		filter := newVM(t, hypervisor.Config{Accel: hypervisor.TCG}, watched, listener)
		for name, nr := range arch.X86_64.SyscallNames {
			got := verdict(t, filter, seccompData{native, uint32(nr), [6]uint64{}})
			switch {
			case slices.Contains(never, name) && got == allow:
				t.Errorf("%s is allowed", name)
			case slices.Contains(intrusions, name):
				if want := map[bool]uint32{true: notify, false: kill}[listener]; got != want {
					t.Errorf("%s: %#x, want %#x", name, got, want)
				}
				if slices.Contains(listed, name) {
					t.Errorf("%s is both allowed and an intrusion", name)
				}
			case !slices.Contains(listed, name) && got == allow && name != "execve" && name != "seccomp":
				t.Errorf("%s is allowed, and on no list", name)
			case slices.Contains(listed, name) && name != "ioctl" && name != "clone" && name != "prctl" && got != allow && got != notify:
				t.Errorf("%s: %#x, though it is listed", name, got)
			}
		}
		if got := verdict(t, filter, seccompData{native, 999, [6]uint64{}}); got != refuse(unix.EPERM) {
			t.Errorf("a call of a kernel to come: %#x", got)
		}
	}
}
