package specconv_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/huskvm/husk/host/specconv"
)

// ExampleConvert makes the plan of a container, and the spec that its agent gets.
func ExampleConvert() {
	bundle, err := os.MkdirTemp("", "bundle-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(bundle) }()
	if err := os.Mkdir(filepath.Join(bundle, "rootfs"), 0o755); err != nil {
		fmt.Println(err)
		return
	}
	spec := specconv.Example()
	spec.Hostname = "example"
	plan, err := specconv.Convert(specconv.Env{ID: "c1", Bundle: bundle}, spec)
	if err != nil {
		fmt.Println(err)
		return
	}
	guest := plan.GuestSpec(specconv.Found{CPUs: 2})
	fmt.Println(plan.Shares[0].Name, plan.Shares[0].Destination)
	fmt.Println(guest.Hostname, guest.Root.Path, guest.Process.Args)
	// Output:
	// rootfs /
	// example /run/husk/share/rootfs [sh]
}
