// Package libcontainer makes Linux containers on the kernel it runs on:
// namespaces, root filesystem, cgroup (version 2), and the settings of each
// process. It knows of no virtual machine and of no command line.
//
// A container is made in two phases. Create starts the init stage, which is the
// caller's own binary executed again: it sets everything up inside new
// namespaces and waits just before execve. Start releases it. Exec adds a
// process to a container that has been created.
//
// A program that imports this package calls InitStage first thing in main when
// IsInit says so, and has /proc and, for containers with a cgroup, a cgroup2
// filesystem mounted. It needs root and Linux 5.15 or later (mount_setattr,
// cgroup.kill, openat2).
package libcontainer
