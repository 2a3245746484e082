// Package libcontainer makes Linux containers on the kernel it runs on: namespaces, root
// filesystem, cgroup (version 2), and the settings of each process. It knows nothing of
// virtual machines and of command lines.
//
// A container is made by its init stage, which is the caller's own binary, executed again. The
// stage sets everything up inside new namespaces and becomes the container's process by
// execve. So a program that imports this package must call InitStage, first thing in main, if
// IsInit returns true.
//
// The order of calls:
//
//  1. Prepare, optionally: an init stage that waits until Create needs it.
//  2. Create makes the container. Its first process waits just before execve.
//  3. Process.Stdin, Stdout, Stderr or Console are read and written from now on. An output that
//     nobody reads blocks the process, as any pipe does.
//  4. Start lets the first process execute its program.
//  5. Exec, Kill, Pause, Resume, Update, Stats and AwaitOOM may be called between Create and
//     Destroy, also at the same time. Those that need a running process return ErrNotRunning
//     when the first one has ended.
//  6. Process.Wait returns when a process has ended; what it wrote can still be read.
//  7. Destroy ends what is left. Process.CloseIO closes the caller's ends of a process's stdio,
//     which Destroy leaves open.
//
// The package needs root, Linux 5.15 or later (mount_setattr, cgroup.kill, openat2), /proc and,
// for containers with a cgroup, a mounted cgroup2 filesystem.
package libcontainer
