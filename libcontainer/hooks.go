package libcontainer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxHookOutput is how much of a hook's output an error may carry, in bytes.
const maxHookOutput = 4096

// runHooks runs hooks one after the other in the namespaces of the stage. state is the
// container's state as the parent knows it; in it each hook gets the pid that it can see. A
// hook without an environment gets env.
func runHooks(kind string, hooks []specs.Hook, state json.RawMessage, env []string) error {
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
		if len(h.Env) == 0 {
			h.Env = env
		}
		if err := runHook(&h, doc); err != nil {
			return fmt.Errorf("error running %s hook #%d: %w", kind, i, err)
		}
	}
	return nil
}

func runHook(h *specs.Hook, state []byte) error {
	// Files in memory need nobody who writes or reads them while the hook runs, as pipes would.
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, name := range [...]string{"hook-stdin", "hook-stdout", "hook-stderr"} {
		f, err := memFile(name)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if _, err := files[0].WriteAt(state, 0); err != nil {
		return err
	}
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	env := h.Env
	if env == nil {
		env = []string{} // with nil the hook would get this process's environment
	}
	p, err := os.StartProcess(h.Path, args, &os.ProcAttr{Env: env, Files: files})
	if err != nil {
		return err
	}
	late, err := waitHook(p, h.Timeout)
	switch {
	case late:
		// runc's words, which engines match.
		return fmt.Errorf("hook ran past specified timeout of %.1fs", float64(*h.Timeout))
	case err != nil:
		return fmt.Errorf("%w, stdout: %s, stderr: %s", err, hookOutput(files[1]), hookOutput(files[2]))
	}
	return nil
}

// waitHook waits until a hook has ended and says whether it was killed because it took too
// long. timeout is in seconds; nil means no limit.
func waitHook(p *os.Process, timeout *int) (late bool, err error) {
	if timeout != nil {
		t := time.AfterFunc(time.Duration(*timeout)*time.Second, func() { _ = p.Kill() })
		defer func() { late = !t.Stop() && err != nil }()
	}
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = errors.New(st.String())
	}
	return false, err
}

// hookOutput returns the first maxHookOutput bytes that a hook has written. Errors while
// reading are left out: the caller reports the hook's own error.
func hookOutput(f *os.File) string {
	text, _ := io.ReadAll(io.NewSectionReader(f, 0, maxHookOutput))
	return string(text)
}

func memFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
