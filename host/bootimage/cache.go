package bootimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/flock"
	"github.com/huskvm/husk/linux/syscalls"
)

// The cache directory:
//
//	lock               held while anything is made
//	vmlinux-KEY        an unpacked kernel; KEY is the SHA-256 of the file it came from
//	vmlinux-KEY.sha256 its own checksum, in the format of sha256sum
//	initramfs-SUM      SUM is the SHA-256 of the archive itself
//	index-KEY.json     the result of a call of Prepare and everything it depends on,
//	                   so that the next call only has to stat files
//	tmp-*              something half made; left if a run is killed
const (
	lockName        = "lock"
	vmlinuxPrefix   = "vmlinux-"
	initramfsPrefix = "initramfs-"
	indexPrefix     = "index-"
	tempPrefix      = "tmp-"
	sumSuffix       = ".sha256"

	// cacheFormat is part of every key. Raise it when the unpacking, the list of modules or the
	// initramfs changes. Otherwise a new husk would boot files of an old one.
	cacheFormat = 1

	// An index that no Prepare has used for dropAfter is removed, with the files that only it
	// names. The time of use is noted at most once in touchAfter.
	dropAfter  = 72 * time.Hour
	touchAfter = 24 * time.Hour

	maxIndex = 1 << 20
)

type cache struct{ dir string }

// openCache makes the cache directory if it does not exist. It returns an error if anybody but
// the caller could put a kernel into it.
func openCache(dir string) (*cache, error) {
	if dir == "" {
		return nil, errors.New("no cache directory is set")
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	var st unix.Stat_t
	if err := syscalls.IgnoringEINTR(func() error { return unix.Stat(dir, &st) }); err != nil {
		return nil, fmt.Errorf("open cache directory %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, fmt.Errorf("open cache directory %s: not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("open cache directory %s: it belongs to uid %d, not to uid %d: refusing to boot kernels from it",
			dir, st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("open cache directory %s: others may write to it (mode %04o): refusing to boot kernels from it; chmod 0700 it",
			dir, st.Mode&0o7777)
	}
	return &cache{dir: dir}, nil
}

func (c *cache) path(name string) string { return filepath.Join(c.dir, name) }

// lock waits for the cache's lock. The caller calls unlock.
func (c *cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(c.path(lockName), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	if err := flock.Wait(ctx, f); err != nil {
		return nil, fmt.Errorf("lock cache: another husk is unpacking the kernel: %w", err)
	}
	return func() { f.Close() }, nil
}

// cachedFile identifies a file in the cache, as it was when it was complete.
type cachedFile struct {
	Name string
	identity
}

func (f cachedFile) intact(c *cache) bool {
	id, err := identify(c.path(f.Name))
	return err == nil && !id.Absent && id == f.identity && f.Name == filepath.Base(f.Name)
}

type index struct {
	Kernel, Initrd  cachedFile
	Release, Digest string
	Seen            witnesses
}

// indexName returns the name of the index for these settings and this husk with its agent.
func indexName(s Settings, agentKey string) string {
	h := sha256.New()
	fmt.Fprintf(h, "husk guest index %d\x00%s\x00%s\x00%s\x00%s", cacheFormat, s.Kernel, s.Modules, s.Root, agentKey)
	return indexPrefix + hex.EncodeToString(h.Sum(nil))[:32] + ".json"
}

func (c *cache) readIndex(name string) (*index, time.Time, error) {
	f, err := os.Open(c.path(name))
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err != nil {
		return nil, time.Time{}, err
	}
	x := &index{}
	if err := json.Unmarshal(b, x); err != nil {
		return nil, time.Time{}, err
	}
	return x, st.ModTime(), nil
}

// load returns the image of an earlier Prepare if nothing that it was made of and nothing that
// was made has changed. Otherwise, and after any error, it returns nil, and the image is made
// again.
func (c *cache) load(name string) *Image {
	x, used, err := c.readIndex(name)
	if err != nil || len(x.Seen) == 0 || !x.Kernel.intact(c) || !x.Initrd.intact(c) || !x.Seen.unchanged() {
		return nil
	}
	if now := time.Now(); now.Sub(used) > touchAfter {
		// If this fails the index is removed too early, and the image is made again.
		_ = os.Chtimes(c.path(name), now, now)
	}
	return x.image(c)
}

func (x *index) image(c *cache) *Image {
	return &Image{Kernel: c.path(x.Kernel.Name), Initrd: c.path(x.Initrd.Name), Release: x.Release, Digest: x.Digest}
}

func (c *cache) save(name string, x *index) error {
	// A VM may just be starting from files that only the old index names. They are kept as long
	// as if they had been made now.
	if old, _, err := c.readIndex(name); err == nil {
		now := time.Now()
		for _, f := range []string{old.Kernel.Name, old.Initrd.Name} {
			if f == filepath.Base(f) && f != x.Kernel.Name && f != x.Initrd.Name {
				_ = os.Chtimes(c.path(f), now, now) // if it is gone there is nothing to keep
			}
		}
	}
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return c.write(name, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// write makes the file name with what fill writes. The file appears complete or not at all,
// even after a power failure.
func (c *cache) write(name string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(f.Name()) // a later prune would remove it as well
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), c.path(name)); err != nil {
		return err
	}
	dir, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// stat returns the identity of the cached file name.
func (c *cache) stat(name string) (cachedFile, error) {
	id, err := identify(c.path(name))
	if err == nil && id.Absent {
		err = &os.PathError{Op: "stat", Path: c.path(name), Err: os.ErrNotExist}
	}
	return cachedFile{Name: name, identity: id}, err
}

// sumFile returns the hex SHA-256 of a cached file.
func (c *cache) sumFile(ctx context.Context, name string) (string, error) {
	f, err := os.Open(c.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	return sum(ctx, f)
}

func sum(ctx context.Context, r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, r}); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// contextReader returns an error when ctx has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// prune removes what has not been used for long, and what runs that were killed have left. The
// caller holds the lock. What cannot be removed stays until the next time.
func (c *cache) prune(now time.Time) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	old := func(e os.DirEntry) bool {
		info, err := e.Info()
		return err == nil && now.Sub(info.ModTime()) > dropAfter
	}
	inUse := map[string]bool{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), indexPrefix) {
			continue
		}
		x, _, err := c.readIndex(e.Name())
		if err != nil || old(e) {
			_ = os.Remove(c.path(e.Name()))
			continue
		}
		inUse[x.Kernel.Name], inUse[x.Kernel.Name+sumSuffix], inUse[x.Initrd.Name] = true, true, true
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, tempPrefix):
			_ = os.Remove(c.path(name))
		case strings.HasPrefix(name, vmlinuxPrefix), strings.HasPrefix(name, initramfsPrefix):
			if !inUse[name] && old(e) {
				_ = os.Remove(c.path(name))
			}
		}
	}
}
