package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ninepSettings are ways to share files over 9p that are measured with bare QEMU: name, export,
// mount options. The first and the last are husk's own, and their difference is the noise.
var ninepSettings = []struct{ name, export, mount string }{
	{"husk's", husksExport, husksMount},
	{"msize=8192", husksExport, "trans=virtio,version=9p2000.L,cache=mmap,msize=8192,access=client"},
	{"msize=131072", husksExport, "trans=virtio,version=9p2000.L,cache=mmap,msize=131072,access=client"},
	{"cache=none", husksExport, "trans=virtio,version=9p2000.L,cache=none,msize=512000,access=client"},
	{"cache=loose", husksExport, "trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=client"},
	{"access=any", husksExport, "trans=virtio,version=9p2000.L,cache=mmap,msize=512000,access=any"},
	{"multidevs=warn", "security_model=passthrough,multidevs=warn", husksMount},
	{"security_model=none", "security_model=none,multidevs=remap", husksMount},
	{"security_model=mapped-xattr", "security_model=mapped-xattr,multidevs=remap", husksMount},
	{"husk's, again", husksExport, husksMount},
}

// ninep compares settings of the file share: how fast each is, and whether host and guest see
// the same files.
func (b *bench) ninep() error {
	vm, err := b.huskVM()
	if err != nil {
		return err
	}
	for i, s := range ninepSettings {
		share := filepath.Join(b.dir, fmt.Sprintf("ninep-%d", i))
		if err := b.trySetting(vm, share, s.name, s.export, s.mount); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (b *bench) trySetting(vm *vmArgs, share, name, export, mount string) (err error) {
	// Two filesystems with equal inode numbers, as the volumes of a container may have.
	for _, fs := range []string{"a", "b"} {
		dir := filepath.Join(share, fs)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
		defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	}
	g, err := b.bareGuest(vm, share, export, nil)
	if err != nil {
		return err
	}
	defer g.stop()
	if err := g.command(io.Discard, "mount", husksTag, "/share", mount); err != nil {
		return err
	}
	wrong, err := disagreements(g, share)
	if err != nil {
		return err
	}
	subject := name
	if len(wrong) > 0 {
		subject += " (wrong)"
		b.results.notes = append(b.results.notes, name+": "+strings.Join(wrong, "; "))
	}
	said, err := g.text("filework", "/share", "6")
	if err != nil {
		return err
	}
	return b.rates("9p settings: ", subject, said)
}

// disagreements returns the ways in which host and guest see different files.
func disagreements(g *bareGuest, share string) (wrong []string, err error) {
	host := func(name string) string { return filepath.Join(share, name) }
	hostWrites := func(name, text string) {
		err = errors.Join(err, os.WriteFile(host(name), []byte(text), 0o644))
	}
	guest := func(words ...string) string {
		said, gerr := g.text(words...)
		if gerr != nil {
			return gerr.Error()
		}
		_, text, _ := strings.Cut(strings.TrimSpace(said), " ")
		return text
	}
	expect := func(what string, ok bool) {
		if !ok {
			wrong = append(wrong, what)
		}
	}
	hostReads := func(name string) string {
		text, _ := os.ReadFile(host(name))
		return string(text)
	}

	hostWrites("changed", "one")
	expect("the guest does not see the host's file", guest("show", "/share/changed") == "one")
	hostWrites("changed", "another text")
	expect("the guest does not see what the host has changed", guest("show", "/share/changed") == "another text")
	expect("the guest sees a file that is not there", strings.Contains(guest("show", "/share/made"), "no such file"))
	hostWrites("made", "made")
	expect("the guest does not see what the host has made", guest("show", "/share/made") == "made")
	err = errors.Join(err, os.Remove(host("changed")))
	expect("the guest sees what the host has removed", strings.Contains(guest("show", "/share/changed"), "no such file"))

	guest("write", "/share/guest", "of the guest")
	expect("the host does not see what the guest has written", hostReads("guest") == "of the guest")
	hostWrites("mapped", "mapped: no")
	said := guest("map", "/share/mapped", "mapped: ok")
	expect("no shared mapping can be written: "+said, hostReads("mapped") == "mapped: ok")
	guest("chown", "/share/guest")
	var st syscall.Stat_t
	err = errors.Join(err, syscall.Stat(host("guest"), &st))
	expect("owners are not the host's", st.Uid == 1234 && st.Gid == 5678)

	hostWrites("a/file", "")
	hostWrites("b/file", "")
	inode := func(name string) string {
		said, gerr := g.text("show", "/share/"+name)
		err = errors.Join(err, gerr)
		number, _, _ := strings.Cut(said, " ")
		return number
	}
	expect("files of two file systems have one inode number", inode("a/file") != inode("b/file"))
	return wrong, err
}
