// Package syscalls holds system calls that several rooms of the host and the guest make,
// together with what such a call needs around it: a retry, a flag, a thread of its own.
package syscalls
