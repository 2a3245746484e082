package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// guestTimeout bounds the boot of a bare guest and each of its commands.
const guestTimeout = 5 * time.Minute

// bareGuest is a VM with husk's machine, kernel, modules and devices, and testprog as its init:
// what husk does can be done there without husk.
type bareGuest struct {
	cmd  *exec.Cmd
	end  context.CancelFunc // ends cmd
	said bytes.Buffer
	port *net.UnixConn
	in   *bufio.Reader
	ours []io.Closer
}

// bareGuest boots one. fsdev is the value of -fsdev without id and path. tap is the other end
// of the card; with nil it is a tap that leads nowhere.
func (b *bench) bareGuest(v *vmArgs, share, fsdev string, tap *os.File) (_ *bareGuest, err error) {
	initrd := filepath.Join(b.dir, "guest.cpio")
	if err := writeGuestInitrd(initrd, v.value("-initrd"), b.prog); err != nil {
		return nil, err
	}
	argv, files, conns, err := v.cloneArgs(share)
	g := &bareGuest{}
	for _, c := range conns {
		g.ours = append(g.ours, c)
	}
	defer func() {
		for i, f := range files {
			if i != 3 || tap == nil {
				_ = f.Close()
			}
		}
		if err != nil {
			g.stop()
		}
	}()
	if err != nil {
		return nil, err
	}
	// In the order of cloneArgs: QMP, console, channel, then the cards.
	if tap != nil {
		_ = files[3].Close()
		files[3] = tap
	}
	argv = bootArgs(argv, initrd, share, fsdev)
	g.port = conns[2]
	g.in = bufio.NewReaderSize(g.port, 1<<20)
	ctx, cancel := context.WithCancel(context.Background())
	g.end = cancel
	g.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	g.cmd.ExtraFiles = files
	g.cmd.Stderr = &g.said
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// If nobody reads the console, QEMU blocks when the socket's buffer is full.
	go func() { _, _ = io.Copy(io.Discard, conns[1]) }()
	if err := g.cmd.Start(); err != nil {
		g.cmd = nil
		cancel()
		return nil, err
	}
	return g, g.command(io.Discard, "hello")
}

// bootArgs turns the command line of a clone into one that boots.
func bootArgs(argv []string, initrd, share, fsdev string) []string {
	var boot []string
	for i := 0; i < len(argv); i++ {
		flag := argv[i]
		if flag == "-incoming" || flag == "-object" {
			i++
			continue
		}
		boot = append(boot, flag)
		if i == 0 || i+1 >= len(argv) {
			continue
		}
		switch flag {
		case "-machine":
			i++
			boot = append(boot, strings.ReplaceAll(argv[i], ",memory-backend=ram", ""))
		case "-initrd":
			i++
			boot = append(boot, initrd)
		case "-append":
			i++
			boot = append(boot, argv[i]+" TESTPROG=guest")
		case "-fsdev":
			i++
			boot = append(boot, fmt.Sprintf("local,id=share,path=%s,%s", share, fsdev))
		}
	}
	return boot
}

// writeGuestInitrd writes husk's initramfs with testprog in place of the agent. The kernel
// unpacks the second of two archives over the first.
func writeGuestInitrd(path, husks, prog string) error {
	over := path + ".init"
	if err := writeFloorInitrd(over, prog); err != nil {
		return err
	}
	var all []byte
	for _, part := range []string{husks, over} {
		data, err := os.ReadFile(part)
		if err != nil {
			return err
		}
		all = append(all, data...)
		all = append(all, make([]byte, -len(all)&511)...)
	}
	return os.WriteFile(path, all, 0o644)
}

// command makes the guest's testprog run a command, and copies its output to out.
func (g *bareGuest) command(out io.Writer, words ...string) error {
	return g.stream(func(r *bufio.Reader) error {
		line, err := r.ReadBytes('\n')
		for ; err == nil && len(bytes.TrimSpace(line)) > 0; line, err = r.ReadBytes('\n') {
			if _, err := out.Write(line); err != nil {
				return err
			}
		}
		return err
	}, words...)
}

// stream is command for output that does not consist of lines: read reads all of it and the
// newline after it.
func (g *bareGuest) stream(read func(*bufio.Reader) error, words ...string) error {
	doc, err := json.Marshal(words)
	if err != nil {
		return err
	}
	if err := g.port.SetDeadline(time.Now().Add(guestTimeout)); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("bare guest: %s: %w: %s", words[0], err, g.said.String()) }
	if _, err := g.port.Write(append(doc, '\n')); err != nil {
		return fail(err)
	}
	if err := read(g.in); err != nil {
		return fail(err)
	}
	verdict, err := g.in.ReadString('\n')
	if err == nil && verdict != "ok\n" {
		err = errors.New(strings.TrimSpace(verdict))
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// text returns what a command prints.
func (g *bareGuest) text(words ...string) (string, error) {
	var out bytes.Buffer
	err := g.command(&out, words...)
	return out.String(), err
}

func (g *bareGuest) stop() {
	if g.cmd != nil {
		g.end()
		_ = g.cmd.Wait()
	}
	for _, c := range slices.Backward(g.ours) {
		_ = c.Close()
	}
}
