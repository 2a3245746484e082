package libcontainer

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// root is a directory inside which all paths are resolved: neither a symbolic link nor ".."
// leads out of it. A rootfs comes from an image, and its links may be hostile.
type root struct {
	fd int // opened with O_PATH
}

// maxLinks is the kernel's limit on symbolic links in one resolution.
const maxLinks = 40

var errEscapes = errors.New("too many concurrent renames")

// openRoot opens a directory as a root.
func openRoot(dir string) (root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return root{}, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return root{fd}, nil
}

// open opens name as if the root were "/". name may be relative or absolute.
func (r root) open(name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	// The kernel returns EAGAIN if a rename or mount, anywhere on the machine, happens while it
	// resolves "..".
	for range 128 {
		fd, err := unix.Openat2(r.fd, name, &how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return -1, err
		}
		return fd, nil
	}
	return -1, errEscapes
}

// lookup opens name with O_PATH. It follows symbolic links inside the root.
func (r root) lookup(name string) (int, error) {
	return r.open(name, unix.O_PATH, 0)
}

// mkdirAll opens the directory name with O_PATH, and makes missing directories with mode 0755.
// For a dangling symbolic link it makes the link's target.
func (r root) mkdirAll(name string) (int, error) {
	return r.mkdirAllLinks(name, maxLinks)
}

func (r root) mkdirAllLinks(name string, links int) (int, error) {
	if fd, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		return fd, nil
	}
	dirFD, err := r.lookup(".")
	if err != nil {
		return -1, err
	}
	// name is not cleaned: "a/../b" must pass through a, which may be a symbolic link.
	done := ""
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		next := done + "/" + part
		fd, err := r.open(next, unix.O_PATH|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) {
			fd, err = r.mkdirOne(dirFD, done, part, links)
		}
		_ = unix.Close(dirFD)
		if err != nil {
			var made *fs.PathError
			if errors.As(err, &made) {
				return -1, err
			}
			return -1, &fs.PathError{Op: "mkdir", Path: next, Err: err}
		}
		dirFD, done = fd, next
	}
	return dirFD, nil
}

// mkdirOne makes part in the directory dirFD, whose path is dir.
func (r root) mkdirOne(dirFD int, dir, part string, links int) (int, error) {
	err := unix.Mkdirat(dirFD, part, 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := r.open(dir+"/"+part, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	// mkdir says that the name exists and open says that it does not: it is a dangling link.
	target, err := readlinkAt(dirFD, part)
	if err != nil {
		return -1, err
	}
	if links == 0 {
		return -1, unix.ELOOP
	}
	if !strings.HasPrefix(target, "/") {
		target = dir + "/" + target
	}
	return r.mkdirAllLinks(target, links-1)
}

// createFile opens the file name with O_PATH. If it is missing, createFile makes it, empty and
// with mode 0644, and its directories. If something exists at name, even a directory,
// createFile returns that.
func (r root) createFile(name string) (int, error) {
	for range maxLinks {
		fd, err := r.lookup(name)
		if !errors.Is(err, unix.ENOENT) {
			if err != nil {
				err = &fs.PathError{Op: "open", Path: name, Err: err}
			}
			return fd, err
		}
		dir, base := path.Split(name)
		dirFD, err := r.mkdirAll(dir)
		if err != nil {
			return -1, err
		}
		target, err := createOne(dirFD, base)
		_ = unix.Close(dirFD)
		if err != nil {
			return -1, &fs.PathError{Op: "create", Path: name, Err: err}
		}
		switch {
		case target == "":
		case strings.HasPrefix(target, "/"):
			name = target
		default:
			name = dir + "/" + target
		}
	}
	return -1, &fs.PathError{Op: "create", Path: name, Err: unix.ELOOP}
}

// createOne makes an empty file. If a dangling link is in its place, it returns the link's
// target.
func createOne(dirFD int, base string) (target string, err error) {
	fd, err := unix.Openat(dirFD, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err == nil {
		return "", unix.Close(fd)
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	target, err = readlinkAt(dirFD, base)
	if errors.Is(err, unix.EINVAL) { // somebody has made it since
		return "", nil
	}
	return target, err
}

func readlinkAt(dirFD int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirFD, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// fileType returns the S_IFMT bits of the file that fd is open on.
func fileType(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Mode & unix.S_IFMT, nil
}

func isDir(fd int) bool {
	t, err := fileType(fd)
	return err == nil && t == unix.S_IFDIR
}

// onFilesystem says whether fd is open on a filesystem with this magic number.
func onFilesystem(fd int, magic int64) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == magic
}
