//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// leakGrace bounds how long things may still exist after the last delete. An engine unmounts
// the rootfs right after delete; on a busy machine the last process takes its time to be gone.
const leakGrace = 15 * time.Second

// tagPattern matches the tag of any test.
var tagPattern = regexp.MustCompile(`hi-[0-9]+x`)

// close removes what the test has left, as an engine would, and fails the test if anything
// remains.
func (e *env) close() {
	e.t.Helper()
	for _, id := range strings.Fields(e.do("list", "-q").stdout) {
		if r := e.do("delete", "--force", id); r.code != 0 {
			e.t.Errorf("%s: exit code %d: %s", r.what, r.code, r.stderr)
		}
	}
	deadline := time.Now().Add(leakGrace)
	leaks := e.leaks()
	for len(leaks) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond) // nothing tells that they have gone
		leaks = e.leaks()
	}
	if len(leaks) > 0 {
		e.t.Errorf("left behind:\n  %s", strings.Join(leaks, "\n  "))
	}
	e.killLeaked()
	for _, n := range e.namespaces {
		n.kept.Close()
	}
	e.remove()
}

// remove deletes the test's directory, but never through a mount.
func (e *env) remove() {
	for _, m := range mountsBelow(e.dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			e.t.Errorf("unmount leaked %s: %v", m, err)
		}
	}
	if left := mountsBelow(e.dir); len(left) > 0 {
		e.t.Errorf("not removing %s: mounts below it: %v", e.dir, left)
		return
	}
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Errorf("remove the test's directory: %v", err)
	}
}

func (e *env) leaks() []string {
	var leaks []string
	for _, m := range mountsBelow(e.dir) {
		leaks = append(leaks, "mount "+m)
	}
	for pid, why := range e.processes() {
		leaks = append(leaks, fmt.Sprintf("process %d (%s): %s", pid, describe(pid), why))
	}
	for _, place := range []string{"/sys/fs/cgroup", "/run"} {
		leaks = append(leaks, e.directories(place)...)
	}
	entries, err := os.ReadDir(e.root)
	if err != nil && !os.IsNotExist(err) {
		leaks = append(leaks, err.Error())
	}
	for _, entry := range entries {
		if entry.IsDir() {
			leaks = append(leaks, "state directory "+entry.Name())
		}
	}
	return append(leaks, e.networkLeaks()...)
}

// networkLeaks looks into the network namespaces that the test has made. A tap in another
// namespace lives as long as its process, which the leak check finds too.
func (e *env) networkLeaks() []string {
	var leaks []string
	for _, n := range e.namespaces {
		err := n.try(func() error {
			for _, err := range leftByRuntime() {
				leaks = append(leaks, fmt.Sprintf("%s: %v", filepath.Base(n.path), err))
			}
			return nil
		})
		if err != nil {
			leaks = append(leaks, err.Error())
		}
	}
	return leaks
}

// directories lists what is named after this test's containers below place.
func (e *env) directories(place string) []string {
	var found []string
	_ = filepath.WalkDir(place, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // directories of other containers disappear meanwhile
		}
		if path == e.dir {
			return fs.SkipDir // TMPDIR may be below /run
		}
		if strings.Contains(d.Name(), e.tag) {
			found = append(found, path)
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
	return found
}

// processes returns living processes that have to do with this test, with the reason.
// Everything that the runtime starts descends from this process, the subreaper. A process of
// another test never counts, even if its mount namespace is a copy made while this test's
// mounts existed.
func (e *env) processes() map[int]string {
	found := map[int]string{}
	self := os.Getpid()
	for _, pid := range allPIDs() {
		if pid == self || !alive(pid) || !descends(pid, self) {
			continue
		}
		if why := e.tie(pid); why != "" && alive(pid) {
			found[pid] = why
		}
	}
	return found
}

func (e *env) tie(pid int) string {
	dir := fmt.Sprintf("/proc/%d/", pid)
	anothers := false // it belongs to a test that runs in parallel
	for _, file := range []string{"cmdline", "environ", "cgroup"} {
		data, _ := os.ReadFile(dir + file)
		if strings.Contains(string(data), e.tag) {
			return file
		}
		anothers = anothers || tagPattern.Match(data)
	}
	for _, link := range []string{"cwd", "root", "exe"} {
		if target, _ := os.Readlink(dir + link); strings.Contains(target, e.tag) {
			return link + " " + target
		}
	}
	fds, _ := os.ReadDir(dir + "fd")
	for _, fd := range fds {
		if target, _ := os.Readlink(dir + "fd/" + fd.Name()); strings.Contains(target, e.tag) {
			return "fd " + fd.Name() + " " + target
		}
	}
	if anothers {
		return ""
	}
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	if theirs, _ := os.Readlink(dir + "ns/mnt"); theirs != "" && theirs != ours {
		if data, _ := os.ReadFile(dir + "mountinfo"); strings.Contains(string(data), e.tag) {
			return "mount namespace"
		}
	}
	return ""
}

// killLeaked ends leaked processes, so that one leak does not fail all later tests.
func (e *env) killLeaked() {
	for pid := range e.processes() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// liveDescendants describes the living processes below this one.
func liveDescendants() []string {
	var left []string
	for _, pid := range allPIDs() {
		if pid != os.Getpid() && alive(pid) && descends(pid, os.Getpid()) {
			left = append(left, fmt.Sprintf("%d %s", pid, describe(pid)))
		}
	}
	return left
}

func allPIDs() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive tells a running process from a zombie that its parent has not reaped yet.
func alive(pid int) bool {
	s := procStat(pid)
	return len(s) > 0 && s[0] != "Z" && s[0] != "X"
}

func descends(pid, ancestor int) bool {
	for pid > 1 {
		if pid == ancestor {
			return true
		}
		s := procStat(pid)
		if len(s) < 2 {
			return false
		}
		pid, _ = strconv.Atoi(s[1])
	}
	return false
}

// procStat returns the fields of /proc/PID/stat from field 3 (state) on.
func procStat(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	text := string(data)
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}

func describe(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	text := strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " "))
	if len(text) > 4000 {
		text = text[:4000] + "..."
	}
	return text
}

// mountsBelow returns the mount points of this mount namespace at or below dir, the deepest
// first.
func mountsBelow(dir string) []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			found = append([]string{fields[4]}, found...)
		}
	}
	return found
}
