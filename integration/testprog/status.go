package main

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
)

// report is the process's own view of its settings. process_test.go reads it.
type report struct {
	UID, GID   int
	Groups     []int
	Cwd        string
	Args, Env  []string
	Hostname   string
	Domainname string
	Umask      int
	Rlimits    map[string][2]uint64
	Status     map[string]string // /proc/self/status
	OOMScore   string
	PID, PPID  int
}

var rlimits = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
	"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
	"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

func status([]string) error {
	r := report{
		UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(), PID: os.Getpid(), PPID: os.Getppid(),
		Rlimits: map[string][2]uint64{}, Status: map[string]string{},
	}
	var err error
	if r.Groups, err = os.Getgroups(); err != nil {
		return err
	}
	if r.Cwd, err = syscall.Getwd(); err != nil {
		return err
	}
	if r.Hostname, err = os.Hostname(); err != nil {
		return err
	}
	// The umask can be read only by setting it.
	r.Umask = syscall.Umask(0)
	syscall.Umask(r.Umask)
	for name, which := range rlimits {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(which, &l); err != nil {
			return err
		}
		r.Rlimits[name] = [2]uint64{l.Cur, l.Max}
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			r.Status[key] = strings.TrimSpace(value)
		}
	}
	if domain, err := os.ReadFile("/proc/sys/kernel/domainname"); err == nil {
		r.Domainname = strings.TrimSpace(string(domain))
	}
	if score, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		r.OOMScore = strings.TrimSpace(string(score))
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
