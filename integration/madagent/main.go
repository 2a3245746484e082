// Command madagent replaces the agent in a husk that the integration suite builds. For the host
// it behaves like the agent, except for the modes it is asked for. It runs no container: its
// processes are a few lines of output and an exit code.
//
// A mode is "point:how". Modes that must be known before the greeting are on the kernel's
// command line (husk.mad=greeting:garbage), others in the environment of the container's
// process (MAD=pause:error,stats:huge).
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// build is the build of husk that this agent belongs to. The linker sets it.
var build = "dev"

const (
	// param on the kernel's command line has the modes before Create.
	param = "husk.mad="
	// env in the container's process has the modes from Create on.
	env = "MAD="
)

// modes maps points to how they are done. A point that is missing is done correctly.
type modes map[string]string

func parseModes(s string) modes {
	m := modes{}
	for mode := range strings.SplitSeq(s, ",") {
		if point, how, ok := strings.Cut(mode, ":"); ok {
			m[point] = how
		}
	}
	return m
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("madagent: ")
	if os.Getpid() != 1 {
		log.Fatal("not PID 1: this runs in a guest of husk only")
	}
	log.Print(run())
	end("reboot")
}

// run returns when the host has gone, or with the reason why it could not start.
func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m[0], err)
		}
	}
	openConsole()
	if err := loadModules(); err != nil {
		return err
	}
	early, err := commandLine()
	if err != nil {
		return err
	}
	announce(early["boot"])
	end(early["boot"])
	if early["console"] == "flood" {
		go floodConsole()
	}
	p, err := openPort()
	if err != nil {
		return err
	}
	if how := early["greeting"]; how != "" {
		return greetBadly(p, how)
	}
	// The tests keep the sessions of mad agents on this port.
	if err := protocol.Answer(p, build, func(protocol.Offer) error { return nil }); err != nil {
		return err
	}
	if how := early["channel"]; how != "" {
		return breakChannel(p, how)
	}
	session, err := mux.Guest(p)
	if err != nil {
		return err
	}
	return newAgent(p, early).serve(session)
}

func openConsole() {
	fd, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	_ = unix.Dup2(fd, 1)
	_ = unix.Dup2(fd, 2)
}

func loadModules() error {
	list, err := os.ReadFile("/lib/modules/load")
	if err != nil {
		return nil // a kernel with everything built in
	}
	for path := range strings.FieldsSeq(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			log.Printf("load %s: %v", path, err)
		}
	}
	return nil
}

func commandLine() (modes, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	for word := range strings.FieldsSeq(string(b)) {
		if s, ok := strings.CutPrefix(word, param); ok {
			return parseModes(s), nil
		}
	}
	return modes{}, nil
}

// portWait bounds how long the channel's device may take to appear.
const portWait = 30 * time.Second

func findPort() (string, error) {
	deadline := time.Now().Add(portWait)
	for time.Now().Before(deadline) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == protocol.ChannelPort {
				return "/dev/" + filepath.Base(filepath.Dir(name)), nil
			}
		}
		time.Sleep(time.Millisecond) // nothing else runs in the guest
	}
	return "", fmt.Errorf("no port named %s", protocol.ChannelPort)
}
