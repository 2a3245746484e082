package libcontainer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxHookOutput is how much of a hook's output an error may carry, in bytes.
const maxHookOutput = 4096

// runHooks runs hooks one after the other in the namespaces of the stage. state
// is the container's as the parent knows it; the hooks get the pid they see.
func runHooks(kind string, hooks []specs.Hook, state json.RawMessage) error {
	if len(hooks) == 0 {
		return nil
	}
	var st specs.State
	if err := json.Unmarshal(state, &st); err != nil {
		return fmt.Errorf("read state for hooks: %w", err)
	}
	st.Pid = os.Getpid()
	st.Status = specs.StateCreating
	if kind == "startContainer" {
		st.Status = specs.StateCreated
	}
	doc, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode state for hooks: %w", err)
	}
	for i, h := range hooks {
		if err := runHook(&h, doc); err != nil {
			return fmt.Errorf("error running %s hook #%d: %w", kind, i, err)
		}
	}
	return nil
}

func runHook(h *specs.Hook, state []byte) (err error) {
	// Files in memory, not pipes: nothing has to be read or written meanwhile.
	in, err := memFile("hook-stdin")
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if _, err := in.WriteAt(state, 0); err != nil {
		return err
	}
	out, err := memFile("hook-output")
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	env := h.Env
	if env == nil {
		env = []string{} // nil is this process's
	}
	p, err := os.StartProcess(h.Path, args, &os.ProcAttr{Env: env, Files: []*os.File{in, out, out}})
	if err != nil {
		return err
	}
	if h.Timeout != nil {
		t := time.AfterFunc(time.Duration(*h.Timeout)*time.Second, func() { _ = p.Kill() })
		defer func() {
			if !t.Stop() && err == nil {
				err = fmt.Errorf("hook ran past specified timeout of %ds", *h.Timeout)
			}
		}()
	}
	st, err := p.Wait()
	if err != nil {
		return err
	}
	if st.Success() {
		return nil
	}
	text, readErr := io.ReadAll(io.NewSectionReader(out, 0, maxHookOutput))
	if readErr != nil {
		return errors.Join(errors.New(st.String()), readErr)
	}
	return fmt.Errorf("%s, output: %s", st, strings.TrimSpace(string(text)))
}

func memFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
