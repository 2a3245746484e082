package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/libcontainer"
	"github.com/huskvm/husk/protocol"
)

// preparedCgroup is the name of the prepared container's cgroup below cgroupParent. The
// container's id is not known when it is made.
const preparedCgroup = "prepared"

// becomesTemplate says whether the host wants to make a memory template of this guest.
func becomesTemplate() bool {
	b, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(b)), protocol.PrepareParam)
}

// prepare does before a template is saved what every first container needs, so that no clone
// spends time on it.
func (a *agent) prepare() error {
	// The prepared container's mount namespace is made before the share is mounted. With shared
	// propagation the share appears there as well.
	if err := unix.Mount("", runDir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts with a prepared container: %w", err)
	}
	err := a.machine.children.start(func() (pid int, err error) {
		a.prepared, err = libcontainer.Prepare(nil, "", path.Join(a.machine.cgroupParent, preparedCgroup))
		if err != nil {
			return 0, err
		}
		return a.prepared.PID(), nil
	})
	if err != nil {
		return fmt.Errorf("prepare a container: %w", err)
	}
	if err := rehearse(); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	startThreads()
	// Otherwise every clone would have the garbage of the rehearsal in its memory.
	runtime.GC()
	return nil
}

// rehearse encodes and decodes one message of each kind that comes with a container, because
// the libraries build tables for a type at its first use.
func rehearse() error {
	spec := &specs.Spec{
		Process:  &specs.Process{Args: []string{"true"}, Env: []string{"A=b"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
		Root:     &specs.Root{Path: "/"},
		Hostname: "guest",
		Mounts:   []specs.Mount{{Destination: "/", Options: []string{"ro"}}},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}},
			MaskedPaths: []string{"/"}, ReadonlyPaths: []string{"/"},
			Resources: &specs.LinuxResources{},
		},
	}
	b, err := json.Marshal(spec)
	if err == nil {
		err = json.Unmarshal(b, &specs.Spec{})
	}
	if err != nil {
		return err
	}
	for _, m := range []proto.Message{
		&protocol.HelloRequest{UnixNanos: 1, Entropy: b}, &protocol.HelloResponse{KernelRelease: "1", Hypervisor: "1"},
		&protocol.CreateRequest{ContainerId: "1", Spec: b, Share: &protocol.Share{Tag: "1"}}, &protocol.CreateResponse{ShareNanos: 1},
		&protocol.NetworkRequest{Interfaces: []*protocol.Interface{{Name: "1", Routes: []*protocol.Route{{}}}}}, &protocol.NetworkResponse{},
		&protocol.StartRequest{ContainerId: "1"}, &protocol.StartResponse{},
		&protocol.WaitRequest{ContainerId: "1"}, &protocol.WaitResponse{ExitCode: 1},
		&protocol.ExecRequest{ContainerId: "1", Process: b}, &protocol.ExecResponse{},
		&protocol.KillRequest{ContainerId: "1"}, &protocol.KillResponse{},
		&ttrpc.Request{Payload: b}, &ttrpc.Response{Payload: b},
	} {
		b, err := proto.Marshal(m)
		if err == nil {
			err = proto.Unmarshal(b, m.ProtoReflect().New().Interface())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startThreads makes Go's runtime start threads, which stay idle. Otherwise it would start them
// one by one in each clone when system calls block.
func startThreads() {
	const threads = 8
	var all sync.WaitGroup
	all.Add(threads)
	for range threads {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		}()
	}
	all.Wait()
}

// takePrepared returns the prepared container to the first caller, and nil to all others.
func (a *agent) takePrepared() *libcontainer.Prepared {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.prepared
	a.prepared = nil
	return p
}
