package libcontainer_test

import (
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/libcontainer"
)

// Example runs one program in a container and prints what it writes. It needs root, and a
// root filesystem with a shell in the directory rootfs.
func Example() {
	// The init stage of each container is this program again.
	if libcontainer.IsInit() {
		libcontainer.InitStage()
	}
	c, err := libcontainer.Create(&libcontainer.Config{
		ID: "hello",
		Spec: &specs.Spec{
			Root:     &specs.Root{Path: "rootfs"},
			Hostname: "hello",
			Process:  &specs.Process{Args: []string{"sh", "-c", "hostname"}, Cwd: "/", Env: []string{"PATH=/bin"}},
			Mounts:   []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
			Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.NetworkNamespace},
			}},
		},
		CgroupPath: "/hello",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	process := c.Init()
	defer process.CloseIO()
	if err := c.Start(); err != nil {
		fmt.Println(err)
	}
	_, _ = io.Copy(os.Stdout, process.Stdout)
	status, err := process.Wait()
	fmt.Println(status.Code, err)
	if err := c.Destroy(); err != nil {
		fmt.Println(err)
	}
}
