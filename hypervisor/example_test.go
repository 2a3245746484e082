package hypervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/fake"
)

// Example starts a virtual machine, talks to its guest and ends it. With qemu.New in place of
// the fake the machine is a real one, which also needs a kernel and an initramfs.
func Example() {
	var starter hypervisor.Starter = &fake.Starter{
		Guest: func(_ context.Context, channel net.Conn, _ hypervisor.Config) error {
			line, err := bufio.NewReader(channel).ReadString('\n')
			if err == nil {
				_, err = io.WriteString(channel, "the guest got "+line)
			}
			return err
		},
	}
	vm, err := starter.Start(context.Background(), hypervisor.Config{MemoryMiB: 256, VCPUs: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	channel := vm.Channel().Serial
	defer func() { _ = channel.Close() }()
	// The guest need not be ready: the bytes are kept until it reads them.
	_, _ = io.WriteString(channel, "hello\n")
	answer, _ := bufio.NewReader(channel).ReadString('\n')
	fmt.Print(answer)
	<-vm.Done()
	fmt.Println(vm.Err())
	// Output:
	// the guest got hello
	// guest powered itself off
}
