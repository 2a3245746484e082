package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// containersMemory returns how many bytes of RAM all containers of the guest may use together:
// what the kernel calls available right after boot. The rest is for the kernel and the agent.
// Without this limit a container could take all RAM, and the agent could not even report it.
func containersMemory(meminfo string) (int64, error) {
	f, err := os.Open(meminfo)
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	const kib = 1 << 10
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == "MemAvailable:" && fields[2] == "kB" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory: %w", err)
			}
			return n * kib, nil
		}
	}
	return 0, errors.Join(errors.New("read memory: no MemAvailable"), lines.Err())
}

// boundMemory sets a memory limit, in bytes, for the topmost cgroup on the path name, unless
// that has a lower one. It is not set for the container's own cgroup, because the container
// reads its own limit there.
func boundMemory(root, name string, limit int64) error {
	top, _, _ := strings.Cut(path.Clean("/" + name)[1:], "/")
	dir := filepath.Join(root, top)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("bound memory: %w", err)
	}
	file := filepath.Join(dir, "memory.max")
	now, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without the memory controller
	}
	if err != nil {
		return fmt.Errorf("bound memory: %w", err)
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(string(now)), 10, 64); err == nil && n <= limit {
		return nil
	}
	if err := os.WriteFile(file, []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		return fmt.Errorf("bound memory: %w", err)
	}
	return nil
}
