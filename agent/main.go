// Command agent is PID 1 of the guest. It sets the guest up, and then does what the supervisor
// asks for on the agent channel. When it is executed as libcontainer's init stage, it becomes a
// process of a container instead.
//
// It is built for Linux without cgo and with -X main.build=ID. The host refuses an agent of
// another build.
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

// build is the id of the husk build that this agent belongs to. The linker sets it.
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
	// If the agent ends, the guest powers off here. Otherwise the kernel would panic because
	// PID 1 has died, and its backtrace would hide the reason.
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

// run does everything the agent does. It returns only when the guest has to end.
func run() error {
	// A small heap leaves more of the guest's memory to the container.
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
	})
	if err != nil {
		return err
	}
	if becomesTemplate() {
		if err := a.prepare(); err != nil {
			return err
		}
	}
	// This comes last: a template may be saved once the channel is open.
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

// ignoreSignals keeps signals from ending PID 1. Root in a container without a pid namespace
// may send them, and Go's runtime would exit. It installs handlers that do nothing, because an
// ignored signal would stay ignored in every process that the agent starts.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1),
		unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
}
