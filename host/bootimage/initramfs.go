package bootimage

import (
	"fmt"
	"io"
	"strings"
)

// loadList is the file in the initramfs that lists the paths of the modules to load at boot,
// one in each line, each after all modules that it depends on.
const loadList = "/lib/modules/load"

// demandList is the file that lists the modules to load on demand. A line has the requested
// name and a path, ordered as in loadList.
const demandList = "/lib/modules/demand"

// aliasList is the file that lists the names by which the kernel may ask for these modules. A
// line has a pattern and a name of demandList.
const aliasList = "/lib/modules/aliases"

// prober is the path of the agent as the program that the kernel executes when it lacks a
// module.
const prober = "/lib/modules/modprobe"

// File types and permissions of archive members, as in stat.st_mode.
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeReg  = 0o100000
	modeLink = 0o120000
)

// cpioWriter writes a newc cpio archive
// (Documentation/driver-api/early-userspace/buffer-format.rst). The available libraries cannot
// write device nodes, and without /dev/console the guest's init has no standard streams.
type cpioWriter struct {
	w     io.Writer
	inode uint32
	err   error // the first error; later calls do nothing
}

func (c *cpioWriter) member(name string, mode uint32, major, minor uint32, data []byte) {
	c.inode++
	links := uint32(1)
	if mode&modeDir == modeDir {
		links = 2
	}
	name = strings.TrimPrefix(name, "/")
	// Owner and times are zero, so that the same input gives the same archive.
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	c.write([]byte(header + name + "\x00"))
	c.pad(len(header) + len(name) + 1)
	c.write(data)
	c.pad(len(data))
}

func (c *cpioWriter) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}

func (c *cpioWriter) pad(n int) { c.write(make([]byte, -n&3)) }

func (c *cpioWriter) close() error {
	c.inode = 0
	c.member("TRAILER!!!", 0, 0, 0, nil)
	return c.err
}

// writeInitramfs writes the guest's first root: the agent as /init, the modules in load order
// with their lists, and the few directories and devices with which the agent starts. The same
// input gives the same bytes. The archive is not compressed, because under emulation unpacking
// takes longer than reading.
func writeInitramfs(w io.Writer, agent []byte, modules []module) error {
	c := &cpioWriter{w: w}
	for _, dir := range []string{"dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys"} {
		c.member(dir, modeDir|0o755, 0, 0, nil)
	}
	c.member("tmp", modeDir|0o1777, 0, 0, nil)
	c.member("dev/console", modeChar|0o600, 5, 1, nil)
	c.member("dev/null", modeChar|0o666, 1, 3, nil)
	c.member("init", modeReg|0o755, 0, 0, agent)
	c.member(prober, modeLink|0o777, 0, 0, []byte("/init"))
	var list, demand, aliases strings.Builder
	for _, m := range modules {
		b, err := readModule(m)
		if err == nil && len(m.For) > 0 {
			b, err = compress(b)
		}
		if err != nil {
			return err
		}
		c.member(m.guestPath(), modeReg|0o644, 0, 0, b)
		for _, name := range m.For {
			demand.WriteString(name + " " + m.guestPath() + "\n")
		}
		for _, alias := range m.Aliases {
			aliases.WriteString(alias + " " + m.Name + "\n")
		}
		if len(m.For) == 0 {
			list.WriteString(m.guestPath() + "\n")
		}
	}
	c.member(aliasList, modeReg|0o644, 0, 0, []byte(aliases.String()))
	c.member(demandList, modeReg|0o644, 0, 0, []byte(demand.String()))
	c.member(loadList, modeReg|0o644, 0, 0, []byte(list.String()))
	return c.close()
}
