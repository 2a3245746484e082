package fake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/huskvm/husk/hypervisor"
)

func start(t *testing.T, s *Starter) hypervisor.VM {
	t.Helper()
	vm, err := s.Start(t.Context(), hypervisor.Config{Accel: hypervisor.TCG, MemoryMiB: 64, VCPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Stop(); err != nil {
			t.Error(err)
		}
		if err := vm.Channel().Serial.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func waitDone(t *testing.T, vm hypervisor.VM) {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("vm did not end within 10 s")
	}
}

func TestGuestTalksOverChannel(t *testing.T) {
	vm := start(t, &Starter{Guest: func(_ context.Context, conn net.Conn, cfg hypervisor.Config) error {
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(conn, "%d MiB: %s", cfg.MemoryMiB, line)
		return err
	}})
	if _, err := io.WriteString(vm.Channel().Serial, "hello\n"); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(vm.Channel().Serial).ReadString('\n')
	if err != nil || got != "64 MiB: hello\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	waitDone(t, vm)
	if err := vm.Err(); !errors.Is(err, ErrPoweredOff) {
		t.Errorf("Err after the guest returned = %v, want ErrPoweredOff", err)
	}
	if _, err := vm.Info(t.Context()); err == nil {
		t.Error("Info of an ended vm succeeded")
	}
}

func TestStopCutsTheChannel(t *testing.T) {
	sawEnd := make(chan error, 1)
	vm := start(t, &Starter{Guest: func(_ context.Context, conn net.Conn, _ hypervisor.Config) error {
		_, err := conn.Read(make([]byte, 1))
		sawEnd <- err
		return err
	}})
	if vm.Err() != nil {
		t.Errorf("Err before Done = %v", vm.Err())
	}
	for range 2 {
		if err := vm.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	waitDone(t, vm)
	if err := vm.Err(); err != nil {
		t.Errorf("Err after Stop = %v, want nil", err)
	}
	if err := <-sawEnd; err == nil {
		t.Error("the guest's read succeeded after Stop")
	}
	if _, err := vm.Channel().Serial.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("host read after Stop = %v, want EOF", err)
	}
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	if _, err := (&Starter{StartErr: boom}).Start(t.Context(), hypervisor.Config{}); !errors.Is(err, boom) {
		t.Errorf("Start = %v, want boom", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Starter{}).Start(ctx, hypervisor.Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a cancelled context = %v", err)
	}

	s := &Starter{ConsoleText: "booting\n", InfoErr: boom}
	vm := start(t, s)
	if _, err := vm.Info(t.Context()); !errors.Is(err, boom) {
		t.Errorf("Info = %v, want boom", err)
	}
	s.VMs()[0].Print("Kernel panic\n")
	s.VMs()[0].Fail(boom)
	waitDone(t, vm)
	if err := vm.Err(); !errors.Is(err, boom) {
		t.Errorf("Err = %v, want boom", err)
	}
	if got := vm.Console(); !strings.HasPrefix(got, "booting\n") || !strings.HasSuffix(got, "Kernel panic\n") {
		t.Errorf("Console = %q", got)
	}
	if err := vm.Stop(); err != nil || !errors.Is(vm.Err(), boom) {
		t.Errorf("Stop after a failure = %v and Err = %v, want nil and boom", err, vm.Err())
	}
}
