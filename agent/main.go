// Command agent is the guest's PID 1: it makes the guest usable, then does what
// the supervisor asks for on the agent channel. Run as libcontainer's init stage
// it becomes a container's process instead.
//
// It is built for linux without cgo and with -X main.build=ID; the host refuses
// an agent of another build.
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/libcontainer"
)

// build identifies the build of husk this agent belongs to; set by the linker.
var build = "dev"

func main() {
	if libcontainer.IsInit() {
		libcontainer.InitStage()
		return
	}
	if isProber() {
		probe()
		return
	}
	log.SetFlags(0)
	log.SetPrefix("agent: ")
	if os.Getpid() != 1 {
		log.Fatal("not PID 1: the agent runs in a guest of husk only")
	}
	// Whatever ends the agent ends the guest: the kernel's answer to a dead PID 1
	// is a panic whose backtrace would bury the reason.
	defer func() {
		if r := recover(); r != nil {
			log.Printf("panic: %v\n%s", r, debug.Stack())
		}
		powerOff()
	}()
	if err := run(); err != nil {
		log.Print(err)
	}
}

// run is the agent's life. It returns only when the guest can be of no more use.
func run() error {
	// The guest's memory is the container's.
	debug.SetGCPercent(50)
	ignoreSignals()

	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	openConsole()
	events, err := openUevents()
	if err != nil {
		return err
	}
	moduleErr := errors.Join(loadModules(modulesFile), answerKernel())
	random, err := openGenerator()
	if err != nil {
		return err
	}
	memory, err := containersMemory("/proc/meminfo")
	if err == nil {
		err = boundMemory(cgroupRoot, cgroupParent, memory)
	}
	if err != nil {
		return err
	}
	children := newReaper()
	go children.run()
	a, err := newAgent(machine{
		cgroupParent:     cgroupParent,
		containersMemory: memory,
		children:         children,
		setClock:         setClock,
		addEntropy:       random.addEntropy,
		powerOff:         powerOff,
	})
	if err != nil {
		return err
	}
	if becomesTemplate() {
		if err := a.prepare(); err != nil {
			return err
		}
	}
	// Last of all: when the channel opens, a template is saved.
	l, err := openChannel(events)
	if err != nil {
		return errors.Join(err, moduleErr)
	}
	if moduleErr != nil {
		log.Print(moduleErr)
	}
	if err := a.serve(l); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// ignoreSignals keeps Go's runtime from ending PID 1 on a signal that root in a
// container without a pid namespace may send. Handlers that do nothing, because
// an ignored signal would stay ignored in every process the agent starts.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1),
		unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
}
