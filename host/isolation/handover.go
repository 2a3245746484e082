package isolation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/caller"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/protocol"
)

// Call is a verb as husk was called with it.
type Call struct {
	Flags []string // the global flags that every OCI runtime has, except --root
	Args  []string // the verb with its flags and arguments
	// KeepFDs is the number of descriptors from 3 on that the verb passes to the container,
	// without those of a service manager.
	KeepFDs int
}

// argv returns the runtime's command line for the call.
func (c *Call) argv(h *state.Handed) []string {
	argv := append([]string{h.Runtime, "--root", h.Root}, c.Flags...)
	return append(argv, c.Args...)
}

// Exec executes the runtime in place of this process. It returns only with an error.
func (c *Call) Exec(h *state.Handed) error {
	for fd := protocol.FirstDescriptor; fd < protocol.FirstDescriptor+c.KeepFDs+caller.Sockets(); fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("pass descriptor %d to %s: %w", fd, h.Runtime, err)
		}
	}
	return fmt.Errorf("execute %s: %w", h.Runtime, unix.Exec(h.Runtime, c.argv(h), os.Environ()))
}

// Delete makes the runtime delete the container, and then removes the record. It returns the
// runtime's exit code.
func (c *Call) Delete(ctx context.Context, h *state.Handed, root, id string) (code int, err error) {
	// A signal that ends the runtime, by the terminal or by its pid, must not end this process
	// before it has looked at what is left. The runtime would inherit ignored signals.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	cmd := exec.CommandContext(ctx, h.Runtime, c.argv(h)[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("execute %s: %w", h.Runtime, err)
	}
	_, err = Find(ctx, root, id)
	return code, err
}
