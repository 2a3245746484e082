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
//	vmlinux-KEY        an unpacked kernel; KEY is the SHA-256 of what it came from
//	vmlinux-KEY.sha256 its own checksum, as sha256sum writes it
//	initramfs-SUM      SUM is the SHA-256 of the archive itself
//	index-KEY.json     what a call of Prepare found and everything that hung on,
//	                   so that the next one needs to stat and not to read
//	tmp-*              something half made; left by a run that was killed
const (
	lockName        = "lock"
	vmlinuxPrefix   = "vmlinux-"
	initramfsPrefix = "initramfs-"
	indexPrefix     = "index-"
	tempPrefix      = "tmp-"
	sumSuffix       = ".sha256"

	// cacheFormat goes into every key: raise it when the unpacking, the module
	// list or the initramfs changes, or a new husk boots an old husk's files.
	cacheFormat = 1

	// An index that no Prepare has used for this long is dropped with the files
	// only it names. Use is written down once in touchAfter.
	dropAfter  = 72 * time.Hour
	touchAfter = 24 * time.Hour

	maxIndex = 1 << 20
)

type cache struct{ dir string }

// openCache makes the cache directory if need be and refuses one that anybody
// but the caller could put a kernel into.
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

// lock waits for the cache's lock and returns what gives it back.
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

// cachedFile is a file in the cache as it was when it was complete.
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

// indexName is the index of one husk with one agent and these settings.
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

// load returns the image of an earlier Prepare if all it was made of and all it
// made is unchanged, else nil: whatever is wrong, making it anew is the cure.
func (c *cache) load(name string) *Image {
	x, used, err := c.readIndex(name)
	if err != nil || len(x.Seen) == 0 || !x.Kernel.intact(c) || !x.Initrd.intact(c) || !x.Seen.unchanged() {
		return nil
	}
	if now := time.Now(); now.Sub(used) > touchAfter {
		// On a failure the index is at worst made anew one day.
		_ = os.Chtimes(c.path(name), now, now)
	}
	return x.image(c)
}

func (x *index) image(c *cache) *Image {
	return &Image{Kernel: c.path(x.Kernel.Name), Initrd: c.path(x.Initrd.Name), Release: x.Release, Digest: x.Digest}
}

func (c *cache) save(name string, x *index) error {
	// What the old index named and the new does not may be starting at this
	// moment: it is kept as if it had been made just now.
	if old, _, err := c.readIndex(name); err == nil {
		now := time.Now()
		for _, f := range []string{old.Kernel.Name, old.Initrd.Name} {
			if f == filepath.Base(f) && f != x.Kernel.Name && f != x.Initrd.Name {
				_ = os.Chtimes(c.path(f), now, now) // gone already: nothing to keep
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

// write makes the file name out of what fill writes: wholly or not at all, even
// through a power cut.
func (c *cache) write(name string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(f.Name()) // else the next prune does
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

// stat returns the cached file name as it is now.
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

// contextReader ends reading when ctx is done.
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

// prune drops what has not been used for long and what a killed run left. The
// lock must be held. What cannot be removed stays for the next time.
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
