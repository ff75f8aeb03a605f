package spec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxAccounts bounds /etc/passwd and /etc/group of an image: both are hostile input that is read into memory.
const maxAccounts = 1 << 20

// accounts reads an image's users and groups (passwd(5), group(5)). A line that is no account is skipped; an account
// that is asked for but has an id that is no number is an error, so that it never becomes root.
type accounts struct{ files Files }

// Files reads a file of an image, named without a leading slash. One that isn't there is empty.
type Files func(name string) ([]byte, error)

// FilesOf reads them in a root file system (a detached, read-only mount), for as long as that is open: regular files of a size
// that accounts may have, links followed within the root.
func FilesOf(root *os.Root) Files {
	return func(name string) ([]byte, error) { return readFile(root, name) }
}

type account struct {
	name     string // "" when the uid is not in /etc/passwd
	uid, gid uint32
	home     string
}

// resolve takes "", "user", "uid", "user:group", "uid:gid" and their mixtures. Digits are always an id.
func (a accounts) resolve(s string) (*account, error) {
	user, group, both := strings.Cut(s, ":")
	if user == "" {
		user = "0"
	}
	u := &account{}
	n, isID, err := numeric(user)
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", s, err)
	}
	found, err := a.find("etc/passwd", func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		if !isID {
			return f[0] == user
		}
		id, ok, err := numeric(f[2])
		return ok && err == nil && id == n
	})
	if err != nil {
		return nil, err
	}
	switch {
	case found != nil:
		u.name = found[0]
		if u.uid, err = field(found, 2); err != nil {
			return nil, err
		}
		if u.gid, err = field(found, 3); err != nil {
			return nil, err
		}
		if len(found) > 5 && strings.HasPrefix(found[5], "/") {
			u.home = found[5]
		}
	case isID:
		u.uid = n
	default:
		return nil, fmt.Errorf("user %q is not in the image's /etc/passwd: %w", user, errdefs.ErrNotFound)
	}
	if !both || group == "" {
		return u, nil
	}
	if u.gid, isID, err = numeric(group); err != nil || isID {
		return u, err
	}
	g, err := a.find("etc/group", func(f []string) bool { return len(f) >= 3 && f[0] == group })
	if err != nil {
		return nil, err
	}
	if g == nil {
		return nil, fmt.Errorf("group %q is not in the image's /etc/group: %w", group, errdefs.ErrNotFound)
	}
	u.gid, err = field(g, 2)
	return u, err
}

// groupsOf returns the groups that list the user as a member. A user without a name is in none.
func (a accounts) groupsOf(u *account) ([]uint32, error) {
	if u.name == "" {
		return nil, nil
	}
	var gids []uint32
	_, err := a.find("etc/group", func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		for m := range strings.SplitSeq(f[3], ",") {
			if strings.TrimSpace(m) == u.name {
				if gid, ok, err := numeric(f[2]); ok && err == nil {
					gids = append(gids, gid)
				}
				break
			}
		}
		return false
	})
	return gids, err
}

func field(f []string, i int) (uint32, error) {
	n, ok, err := numeric(f[i])
	if err == nil && !ok {
		err = invalid("%q is no id", f[i])
	}
	if err != nil {
		return 0, fmt.Errorf("the image's account %q: %w", f[0], err)
	}
	return n, nil
}

// find returns the first line for which match is true, nil when none is or the file does not exist.
func (a accounts) find(file string, match func(fields []string) bool) ([]string, error) {
	b, err := a.read(file)
	if err != nil {
		return nil, fmt.Errorf("read the image's /%s: %w", file, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxAccounts+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if f := strings.Split(line, ":"); match(f) {
			return f, nil
		}
	}
	return nil, lines.Err()
}

func (a accounts) read(file string) ([]byte, error) {
	if a.files == nil {
		return nil, nil
	}
	return a.files(file)
}

func readFile(root *os.Root, file string) ([]byte, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// Images link /etc/passwd by absolute paths, which os.Root refuses; openat2(2), Linux 5.6, resolves them inside.
	// O_PATH first: opening what turns out to be a FIFO would wait, a device may do anything.
	fd, err := unix.Openat2(int(dir.Fd()), file, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: file, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, invalid("not a regular file")
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err == nil && len(b) > maxAccounts {
		err = invalid("larger than %d bytes", maxAccounts)
	}
	return b, err
}
