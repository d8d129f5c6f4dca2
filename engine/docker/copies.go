package docker

import (
	"context"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// volumeFile finds the volume in which a container path lies.
func (s *Sandbox) volumeFile(ctx context.Context, p string) (*os.Root, string, error) {
	clean := path.Clean("/" + p)
	best := ""
	for _, v := range s.spec.Volumes {
		if strings.HasPrefix(clean, v.Path+"/") && len(v.Path) > len(best) {
			best = v.Path
		}
	}
	if best == "" {
		return nil, "", fmt.Errorf("%s: %w: it lies in no volume of the sandbox", p, berth.ErrInvalid)
	}
	root, err := s.Volume(ctx, best)
	return root, strings.TrimPrefix(clean, best+"/"), err
}

// streamFiles are the files that get what a step writes, by its streams.
func streamFiles(step *berth.StepSpec) map[string]string {
	files := map[string]string{}
	if step.Stdout != "" {
		files["stdout"] = step.Stdout
	}
	if step.Stderr != "" {
		files["stderr"] = step.Stderr
	}
	return files
}

// openCopies makes the files in volumes that get the step's streams. They are the user's where it is a number.
func (s *Sandbox) openCopies(ctx context.Context, step *berth.StepSpec) (map[string]*os.File, error) {
	copies := map[string]*os.File{}
	for stream, p := range streamFiles(step) {
		f, err := s.openCopy(ctx, stream, p, step, os.O_WRONLY|os.O_TRUNC)
		if err == nil && s.remote {
			err = s.putCopy(ctx, f.Name(), p, step.User) // empty until the end
		}
		if f != nil {
			copies[stream] = f
		}
		if err != nil {
			closeAll(copies)
			return nil, err
		}
	}
	return copies, nil
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// openCopy opens the file that gets a stream too, and makes it where it is not there: of a volume of the daemon's, here.
func (s *Sandbox) openCopy(ctx context.Context, stream, p string, step *berth.StepSpec, flag int) (*os.File, error) {
	if !s.remote {
		return s.createInVolume(ctx, p, step.User, flag)
	}
	f, err := os.OpenFile(s.e.life(s.spec.ID, step.ID).copyFile(stream), flag|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p, kindOf(err), err)
	}
	return f, nil
}

func (s *Sandbox) createInVolume(ctx context.Context, p, user string, flag int) (*os.File, error) {
	root, name, err := s.volumeFile(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p, kindOf(err), err)
	}
	f, err := openRegular(root, name, flag|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	u, g, _ := strings.Cut(user, ":")
	uid, err := strconv.Atoi(u)
	if err != nil {
		return f, nil // a name, which only the image knows
	}
	gid, _ := strconv.Atoi(g) // 0, as the daemon has it
	if err := f.Chown(uid, gid); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w: %w", p, kindOf(err), err)
	}
	return f, nil
}
