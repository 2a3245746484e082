package template

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/fake"
)

// saver is a VM that can be saved.
type saver struct {
	*fake.VM
	serial written
	saved  bool
}

func (s *saver) AwaitChannel(context.Context) error { return nil }
func (s *saver) Save(context.Context) error         { s.saved = true; return nil }
func (s *saver) Channel() hypervisor.Channel {
	return hypervisor.Channel{Serial: &s.serial, VsockCID: 5}
}

// written counts the bytes written to a connection.
type written struct {
	net.Conn
	bytes int
}

func (w *written) Write(b []byte) (int, error) {
	w.bytes += len(b)
	return w.Conn.Write(b)
}

type savers struct {
	fake.Starter
	vm *saver
}

func (s *savers) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	vm, err := s.Starter.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.vm = &saver{VM: vm.(*fake.VM), serial: written{Conn: vm.Channel().Serial}}
	return s.vm, nil
}

// TestTemplateIsToldNothing: nothing is sent to a template's agent, because a secret would be
// in the memory of each clone.
func TestTemplateIsToldNothing(t *testing.T) {
	s := &savers{}
	if err := save(t.Context(), s, hypervisor.Config{}); err != nil {
		t.Fatal(err)
	}
	if !s.vm.saved {
		t.Error("it was not saved")
	}
	if n := s.vm.serial.bytes; n != 0 {
		t.Errorf("the guest was told %d bytes", n)
	}
}

// TestEmptyFile: a guest never boots in the RAM of the one before.
func TestEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ram")
	for range 2 {
		if err := emptyFile(path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Size() != 0 || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		if err := os.WriteFile(path, []byte("RAM"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
