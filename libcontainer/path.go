package libcontainer

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// root is a directory that everything below is resolved in: neither a symbolic
// link nor ".." leads out of it, whatever the tree holds. A rootfs comes from an
// image and is as hostile as the image.
type root struct {
	fd int // O_PATH
}

// maxLinks is the kernel's own limit on symbolic links in one resolution.
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

// open resolves name, which may be relative or absolute, as if the root were "/".
func (r root) open(name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	// The kernel gives EAGAIN when a rename or mount anywhere races with "..".
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

// lookup opens name with O_PATH, following symbolic links inside the root.
func (r root) lookup(name string) (int, error) {
	return r.open(name, unix.O_PATH, 0)
}

// mkdirAll opens the directory name with O_PATH and makes what is missing of it
// with mode 0755. A dangling symbolic link is followed and its target made.
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
	// "/" is not cleaned away by name: "a/../b" must pass through a, which may be
	// a link.
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

// mkdirOne makes part in the directory dirFD, which dir leads to.
func (r root) mkdirOne(dirFD int, dir, part string, links int) (int, error) {
	err := unix.Mkdirat(dirFD, part, 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := r.open(dir+"/"+part, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	// It exists and doesn't: a link to what doesn't.
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

// createFile opens the file name with O_PATH and makes it, empty and with mode
// 0644, with its directories if it is missing. What exists is returned as it is,
// be it a directory.
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

// createOne makes an empty file, or returns the target of the dangling link
// that is in its place.
func createOne(dirFD int, base string) (target string, err error) {
	fd, err := unix.Openat(dirFD, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err == nil {
		return "", unix.Close(fd)
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	target, err = readlinkAt(dirFD, base)
	if errors.Is(err, unix.EINVAL) { // somebody made it meanwhile
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

// fileType is the S_IFMT part of what fd is open on.
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

// onFilesystem says whether fd is on a filesystem of the given magic number.
func onFilesystem(fd int, magic int64) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == magic
}
