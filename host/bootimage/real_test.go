package bootimage

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"
)

// TestRealKernel prepares the kernel of a distribution in HUSK_TEST_KERNEL with the modules in
// HUSK_TEST_MODULES. make guest sets both.
func TestRealKernel(t *testing.T) {
	s := Settings{Kernel: os.Getenv("HUSK_TEST_KERNEL"), Modules: os.Getenv("HUSK_TEST_MODULES"), CacheDir: t.TempDir()}
	if s.Kernel == "" {
		t.Skip("HUSK_TEST_KERNEL is not set; make guest sets it")
	}
	k, err := Find(s)
	if err != nil {
		t.Fatal(err)
	}
	if k.ModulesDir != "" {
		last := -1
		for _, name := range []string{"virtio_mmio", "9pnet_virtio", "9p"} {
			i := slices.IndexFunc(k.modules, func(m module) bool { return m.Name == name })
			if i >= 0 && i < last {
				t.Errorf("%s comes too early in %v", name, names(k.modules))
			}
			last = max(last, i)
		}
	}
	agent := func() ([]byte, error) { return fakeAgent, nil }
	start := time.Now()
	cold, err := prepare(context.Background(), s, agent, nil)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	st, err := os.Stat(cold.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	warm, err := prepare(context.Background(), s, agent, nil)
	if err != nil || *warm != *cold {
		t.Fatalf("cold %+v, warm %+v, %v", cold, warm, err)
	}
	t.Logf("%s: %d modules, initramfs %d KiB without agent, cold %v, warm %v",
		k.Release, len(k.modules), st.Size()>>10, took.Round(time.Millisecond), time.Since(start))
}
