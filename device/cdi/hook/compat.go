package hook

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/device/cdi/inroot"
)

const (
	confDir    = "/etc/ld.so.conf.d"
	compatConf = "00-compat-berth.conf" // sorts before what it is to win over
)

// enableCUDACompat has programs use the CUDA libraries that the image brings for drivers older than itself, where
// they fit the host's driver.
func enableCUDACompat(flags *flag.FlagSet) func(*job) error {
	c := Compat{}
	flags.StringVar(&c.Dir, "cuda-compat-container-root", "/usr/local/cuda/compat", "where the image has them")
	flags.StringVar(&c.HostDriver, "host-driver-version", "", "version of the host's driver")
	flags.StringVar(&c.HostCUDA, "host-cuda-version", "", "version of CUDA that the host's driver has")
	return func(j *job) error {
		dir, why, err := c.Find(j.root)
		if err != nil {
			return err
		}
		if why != "" {
			j.warn("%s", why)
		}
		if dir == "" {
			return nil
		}
		if strings.ContainsAny(dir, "\n#") {
			return fmt.Errorf("the directory %q cannot stand in %s", dir, confDir)
		}
		return j.root.WriteFile(path.Join(confDir, compatConf), []byte(dir+"\n"), 0o644)
	}
}

// Compat is the choice between the CUDA libraries of the host's driver and those of an image.
type Compat struct {
	Dir                  string // in the container
	HostDriver, HostCUDA string // versions; "" is unknown
}

// Find is the directory, without links, whose CUDA libraries are to be used rather than the driver's; "" if none
// are. Why says what is odd about those that are there.
func (c Compat) Find(root *inroot.Root) (dir, why string, err error) {
	if c.HostDriver == "" && c.HostCUDA == "" {
		return "", "", nil
	}
	entries, err := root.ReadSome(c.Dir, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	} else if err != nil {
		return "", "", err
	}
	var libs []string
	for _, e := range entries {
		if ok, _ := path.Match("libcuda.so.*.*", e.Name()); ok && e.Type().IsRegular() {
			libs = append(libs, e.Name())
		}
	}
	if len(libs) == 0 {
		return "", "", nil
	}
	if len(libs) > 1 {
		return "", fmt.Sprintf("%s has several libcuda: %s; none is used", c.Dir, strings.Join(libs, ", ")), nil
	}
	f, err := root.OpenRegular(path.Join(c.Dir, libs[0]))
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	fits, err := c.fits(strings.TrimPrefix(libs[0], "libcuda.so."), f)
	if err != nil {
		why = fmt.Sprintf("%s in %s: %v", libs[0], c.Dir, err)
	}
	if !fits {
		return "", why, nil
	}
	dir, err = root.Resolve(c.Dir)
	return dir, why, err
}

func (c Compat) fits(version string, lib io.ReaderAt) (bool, error) {
	n, err := readCompatNote(lib)
	if n != nil {
		return n.UseCompat(version, c.HostDriver, c.HostCUDA), nil
	}
	if c.HostCUDA != "" {
		return false, err // only the note could say whether it is newer
	}
	// Without a note the branch of the driver decides.
	host, image := parseVersion(c.HostDriver), parseVersion(version)
	return host != nil && image != nil && host[0] < image[0], nil
}

// CompatNote is what a libcuda of an image says about the drivers that it can run on.
type CompatNote struct {
	CUDA     string `json:"CUDA Version"`
	Branches []int  `json:"Driver"`
}

// readCompatNote reads the note; nil if there is none.
func readCompatNote(lib io.ReaderAt) (*CompatNote, error) {
	text, err := note(lib, ".note.cuda.fwd_compatibility", "NVIDIA Corporation")
	if err != nil || text == nil {
		if errors.Is(err, errNotELF) {
			err = nil
		}
		return nil, err
	}
	n := &CompatNote{}
	if err := json.Unmarshal(text, n); err != nil {
		return nil, fmt.Errorf("its note on compatibility: %w", err)
	}
	return n, nil
}

// UseCompat says whether an image's libcuda, whose driver version is given, is to be used on a host. Where both
// driver versions are known they decide: the library must be the newer one, and know the host's branch. Else the
// versions of CUDA do.
func (n *CompatNote) UseCompat(driver, hostDriver, hostCUDA string) bool {
	image, host := parseVersion(driver), parseVersion(hostDriver)
	if image != nil && host != nil {
		return slices.Contains(n.Branches, host[0]) && slices.Compare(image, host) > 0
	}
	imageCUDA, cuda := parseVersion(n.CUDA), parseVersion(hostCUDA)
	return imageCUDA != nil && cuda != nil && slices.Compare(imageCUDA, cuda) > 0
}

var version = regexp.MustCompile(`^v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?$`)

// parseVersion reads a version of up to three numbers, as three; nil if it is none.
func parseVersion(s string) []int {
	m := version.FindStringSubmatch(s)
	if m == nil {
		return nil
	}
	v := make([]int, 3)
	for i := range v {
		v[i], _ = strconv.Atoi(cmp.Or(m[i+1], "0"))
	}
	return v
}
