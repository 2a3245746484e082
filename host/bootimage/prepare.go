package bootimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// agentSource returns the agent's executable.
type agentSource func() ([]byte, error)

// agentKey changes whenever the agent changes. The agent is part of husk's executable, so the
// key is that file's identity. Hashing the agent at every start of a container would take
// longer than everything else here.
func agentKey() (string, error) {
	id, err := identify("/proc/self/exe")
	if err == nil && id.Absent {
		err = errors.New("is /proc mounted?")
	}
	if err != nil {
		return "", fmt.Errorf("identify own executable: %w", err)
	}
	return fmt.Sprintf("%d-%d-%d-%d", id.Device, id.Inode, id.Size, id.CtimeNS), nil
}

func prepare(ctx context.Context, s Settings, agent agentSource, progress io.Writer) (*Image, error) {
	c, err := openCache(s.CacheDir)
	if err != nil {
		return nil, err
	}
	key, err := agentKey()
	if err != nil {
		return nil, err
	}
	name := indexName(s, key)
	if img := c.load(name); img != nil {
		return img, nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Another process may have made it while this one waited for the lock.
	if img := c.load(name); img != nil {
		return img, nil
	}
	m := &maker{cache: c, finder: &finder{settings: s, seen: witnesses{}}, progress: progress}
	x, err := m.make(ctx, agent)
	if err != nil {
		return nil, err
	}
	// A file that has just changed could change again unnoticed. In that case no index is
	// written, and the next run looks at all files again.
	if m.finder.seen.settled(time.Now()) {
		if err := c.save(name, x); err != nil {
			return nil, fmt.Errorf("write cache index: %w", err)
		}
	}
	c.prune(time.Now())
	return x.image(c), nil
}

// maker makes what the cache does not have. The caller holds the cache's lock.
type maker struct {
	cache    *cache
	finder   *finder
	progress io.Writer
}

func (m *maker) make(ctx context.Context, agent agentSource) (*index, error) {
	kernel, err := m.finder.find()
	if err != nil {
		return nil, err
	}
	agentBytes, err := agent()
	if err != nil {
		return nil, err
	}
	vmlinux, kernelSum, err := m.vmlinux(ctx, kernel)
	if err != nil {
		return nil, fmt.Errorf("unpack kernel %s: %w", kernel.Path, err)
	}
	initrd, err := m.initramfs(ctx, agentBytes, kernel.modules)
	if err != nil {
		return nil, fmt.Errorf("make initramfs for %s: %w", kernel.Path, err)
	}
	// If a package is upgraded meanwhile, the image must not have one kernel and the modules of
	// another.
	paths := []string{kernel.Path}
	for _, mod := range kernel.modules {
		if len(mod.For) == 0 {
			paths = append(paths, mod.Path)
		}
	}
	for _, p := range paths {
		if _, err := m.finder.seen.note(p); err != nil {
			return nil, err
		}
	}
	x := &index{Release: kernel.Release, Seen: m.finder.seen}
	if x.Kernel, err = m.cache.stat(vmlinux); err != nil {
		return nil, err
	}
	if x.Initrd, err = m.cache.stat(initrd); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(fmt.Appendf(nil, "husk guest image %d\x00%s\x00%s", cacheFormat, kernelSum, initrd))
	x.Digest = hex.EncodeToString(digest[:])
	return x, nil
}

// vmlinux returns the name of the unpacked kernel in the cache, and the hex SHA-256 of the file
// it came from.
func (m *maker) vmlinux(ctx context.Context, kernel *Kernel) (name, packedSum string, err error) {
	f, err := os.Open(kernel.Path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	id, err := identifyFile(f)
	if err != nil {
		return "", "", err
	}
	if was := m.finder.seen[kernel.Path]; was != id {
		return "", "", errors.New("it changed while it was being read")
	}
	if packedSum, err = sum(ctx, f); err != nil {
		return "", "", err
	}
	name = fmt.Sprintf("%s%d-%s", vmlinuxPrefix, cacheFormat, packedSum)
	if !m.sound(ctx, name) {
		return name, packedSum, m.unpack(ctx, name, kernel, f, id.Size)
	}
	out, err := os.Open(m.cache.path(name))
	if err != nil {
		return "", "", err
	}
	defer out.Close()
	// It may have been unpacked for other settings, with which it had modules.
	return name, packedSum, checkBootable(out, kernel)
}

// checkBootable says whether an unpacked kernel can be booted by QEMU and, if it has no
// modules, has the required drivers built in.
func checkBootable(f *os.File, kernel *Kernel) error {
	if err := checkVMLinux(f); err != nil {
		return err
	}
	if kernel.ModulesDir != "" {
		return nil // Find has checked the modules
	}
	missing, err := missingBuiltins(io.NewSectionReader(f, 0, maxVMLinux))
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("there is no directory with its modules (%s/%s) and %s not built in: install them or set `modules` in /etc/husk/config.toml",
			modulesDir, kernel.Release, isAre(missing))
	}
	return nil
}

func isAre(names []string) string {
	verb := " is"
	if len(names) > 1 {
		verb = " are"
	}
	return strings.Join(names, ", ") + verb
}

// sound says whether the file name in the cache matches its checksum.
func (m *maker) sound(ctx context.Context, name string) bool {
	line, err := os.ReadFile(m.cache.path(name + sumSuffix))
	if err != nil {
		return false
	}
	got, err := m.cache.sumFile(ctx, name)
	return err == nil && string(line) == sumLine(got, name)
}

func sumLine(sum, name string) string { return sum + "  " + name + "\n" }

// unpack unpacks the image f, of size bytes, to the file name in the cache. kernel describes
// the image.
func (m *maker) unpack(ctx context.Context, name string, kernel *Kernel, f *os.File, size int64) error {
	b := newBar(m.progress, "unpacking kernel for guests")
	defer b.finish()
	image, err := imageIn(f, size)
	if err != nil {
		return err
	}
	return m.cache.write(name, func(out *os.File) error {
		h := sha256.New()
		err := unpackKernel(io.MultiWriter(out, h), image, image.Size(), func(n int, of int64) error {
			b.add(n, of)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := checkBootable(out, kernel); err != nil {
			return err
		}
		// The checksum is written first: after a crash between the two it matches no file, and
		// the kernel is unpacked again.
		return m.cache.write(name+sumSuffix, func(f *os.File) error {
			_, err := f.WriteString(sumLine(hex.EncodeToString(h.Sum(nil)), name))
			return err
		})
	})
}

// initramfs returns the name of the archive in the cache. It writes the archive each time,
// because only then its name is known, and it is small. A file of that name that is sound
// stays; otherwise two husks with the same agent would invalidate each other's index for ever.
func (m *maker) initramfs(ctx context.Context, agent []byte, modules []module) (string, error) {
	var archive bytes.Buffer
	if err := writeInitramfs(&archive, agent, modules); err != nil {
		return "", err
	}
	want, err := sum(ctx, bytes.NewReader(archive.Bytes()))
	if err != nil {
		return "", err
	}
	name := initramfsPrefix + want
	if got, err := m.cache.sumFile(ctx, name); err == nil && got == want {
		return name, nil
	}
	return name, m.cache.write(name, func(f *os.File) error {
		_, err := f.Write(archive.Bytes())
		return err
	})
}
