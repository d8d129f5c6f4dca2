package image

import (
	"fmt"
	"net"
	"regexp"
	"runtime"
	"strings"

	"github.com/berth-project/berth"
)

const (
	defaultRegistry = "docker.io"
	officialPrefix  = "library/"
	defaultTag      = "latest"
	refMax          = 1024 // characters of a reference as written
	pathMax         = 255  // characters of a repository, as the distribution specification has it
)

// Ref is a reference to an image in a registry, in full.
type Ref struct {
	Registry   string // "docker.io", "localhost:5000"
	Repository string // "library/debian"
	Tag        string // "" where Digest is set
	Digest     string // "sha256:…" or ""
}

var (
	registryForm   = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?$`)
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$`)
	digestForm     = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	idForm         = regexp.MustCompile(`^[a-f0-9]{12,64}$`)
)

// foreign are the sources that look like references and are not, each with what to do about it.
var foreign = []struct{ prefix, what, remedy string }{
	{"library://", "a Singularity library", "use the image's name in a container registry, or `berth image import` its root file system"},
	{"shub://", "Singularity Hub", "use the image's name in a container registry, or `berth image import` its root file system"},
	{"oras://", "an ORAS artifact, which holds a SIF file", "use the image's name in a container registry, or `berth image import` its root file system"},
	{"docker-archive:", "an archive", "load it first: `berth image load FILE`"},
	{"oci-archive:", "an archive", "load it first: `berth image load FILE`"},
	{"oci:/", "an OCI layout", "load it first: `berth image load DIR`"},
	{"oci:./", "an OCI layout", "load it first: `berth image load DIR`"},
	{"docker-daemon:", "a Docker daemon's image", "`docker save` it and `berth image load` the file"},
	{"containers-storage:", "a Podman image", "`podman save` it and `berth image load` the file"},
	{"file://", "a file", "load it first: `berth image load FILE`"},
}

// ParseRef reads a reference as a user writes it, with Docker's rules: "debian" is
// docker.io/library/debian:latest, and "host:5000/img" is :latest too. "docker://" before it is taken off.
// A tag beside a digest is dropped: the digest alone decides. Errors wrap ErrInvalid, or ErrUnsupported for
// sources that are no registry.
func ParseRef(s string) (Ref, error) {
	if err := checkSource(s); err != nil {
		return Ref{}, err
	}
	var r Ref
	rest := strings.TrimPrefix(s, "docker://")
	if len(rest) > refMax {
		return Ref{}, badRef(s[:64]+"…", fmt.Sprintf("it is longer than %d characters", refMax))
	}
	if name, digest, ok := strings.Cut(rest, "@"); ok {
		if !digestForm.MatchString(digest) {
			return Ref{}, badRef(s, "what follows @ is no digest sha256:<64 hexadecimal digits>")
		}
		rest, r.Digest = name, digest
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !tagForm.MatchString(r.Tag) {
			return Ref{}, badRef(s, fmt.Sprintf("%q is no tag: 1 to 128 of A-Z a-z 0-9 _ . -, not beginning with . or -", r.Tag))
		}
	}
	r.Registry, r.Repository = splitRegistry(rest)
	if r.Registry == "index.docker.io" || r.Registry == "registry-1.docker.io" {
		r.Registry = defaultRegistry
	}
	if r.Registry == defaultRegistry && !strings.Contains(r.Repository, "/") {
		r.Repository = officialPrefix + r.Repository
	}
	switch {
	case rest == "":
		return Ref{}, badRef(s, "it names no image")
	case !registryForm.MatchString(r.Registry):
		return Ref{}, badRef(s, fmt.Sprintf("%q is no registry host", r.Registry))
	case r.Repository != strings.ToLower(r.Repository):
		return Ref{}, badRef(s, "the names of images are lower case")
	case !repositoryForm.MatchString(r.Repository) || len(r.Registry)+1+len(r.Repository) > pathMax:
		return Ref{}, badRef(s, fmt.Sprintf("%q is no image name", r.Repository))
	}
	if r.Digest != "" {
		r.Tag = ""
	} else if r.Tag == "" {
		r.Tag = defaultTag
	}
	return r, nil
}

func badRef(s, why string) error {
	return fmt.Errorf("image %q: %w: %s", s, berth.ErrInvalid, why)
}

// checkSource refuses what is no reference to a registry, with the remedy.
func checkSource(s string) error {
	for _, f := range foreign {
		if strings.HasPrefix(s, f.prefix) {
			return fmt.Errorf("image %q: %w: it names %s; %s", s, berth.ErrUnsupported, f.what, f.remedy)
		}
	}
	if strings.HasSuffix(strings.ToLower(s), ".sif") {
		return fmt.Errorf("image %q: %w: SIF files are not read; use the image's name in a container registry, or `berth image import` its root file system", s, berth.ErrUnsupported)
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok && scheme != "docker" {
		return fmt.Errorf("image %q: %w: %s:// is no source of images; name it as registry/repository:tag", s, berth.ErrUnsupported, scheme)
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		return badRef(s, "it is a path; load it first: `berth image load FILE`, then use its name")
	}
	return nil
}

// splitRegistry splits at the first slash, where what precedes it can only be a host.
func splitRegistry(s string) (registry, repository string) {
	host, rest, ok := strings.Cut(s, "/")
	if ok && (strings.ContainsAny(host, ".:[") || host == "localhost" || host != strings.ToLower(host)) {
		return host, rest
	}
	return defaultRegistry, s
}

// String is the reference in full: "docker.io/library/debian:12".
func (r Ref) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

// Name is the reference without tag and digest.
func (r Ref) Name() string { return r.Registry + "/" + r.Repository }

// Loopback reports whether a reference names a registry of this host.
func Loopback(ref string) bool {
	r, err := ParseRef(ref)
	return err == nil && r.loopback()
}

// loopback reports whether the registry is on this machine, so that http is safe.
func (r Ref) loopback() bool { return isLoopback(r.Registry) }

// isLoopback reports whether "host[:port]" is on this machine.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// platform is an operating system and an architecture, normalised.
type platform struct{ os, arch, variant string }

// parsePlatform reads "os/arch[/variant]" or "arch"; "" is this machine's.
func parsePlatform(s string) (platform, error) {
	if s == "" {
		return normalPlatform("linux", runtime.GOARCH, ""), nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	for _, p := range parts {
		if p == "" || len(parts) > 3 || strings.ContainsFunc(p, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789_.-", r) }) {
			return platform{}, fmt.Errorf("platform %q: %w: it is written os/arch or os/arch/variant, such as linux/arm64", s, berth.ErrInvalid)
		}
	}
	switch len(parts) {
	case 1:
		return normalPlatform("linux", parts[0], ""), nil
	case 2:
		return normalPlatform(parts[0], parts[1], ""), nil
	}
	return normalPlatform(parts[0], parts[1], parts[2]), nil
}

// normalPlatform gives the architectures that have several names the one that images use.
func normalPlatform(os, arch, variant string) platform {
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "aarch64", "arm64/v8":
		arch = "arm64"
	case "i386", "i686", "x86":
		arch = "386"
	case "armhf":
		arch, variant = "arm", "v7"
	case "armel":
		arch, variant = "arm", "v6"
	}
	if arch == "arm64" && (variant == "v8" || variant == "8") || arch == "amd64" && variant == "v1" {
		variant = ""
	}
	if arch == "arm" && variant == "" {
		variant = "v7"
	}
	return platform{os, arch, variant}
}

func (p platform) String() string {
	if p.variant == "" {
		return p.os + "/" + p.arch
	}
	return p.os + "/" + p.arch + "/" + p.variant
}

// rank says how well an image made for have suits p: 0 not at all, higher is better.
func (p platform) rank(have platform) int {
	if p == (platform{}) {
		return 1 // whatever there is
	}
	if have.os != p.os || have.arch != p.arch {
		return 0
	}
	if have.variant == p.variant {
		return 100
	}
	// A machine runs what was made for a lower variant of its architecture; one without runs the base only.
	if len(have.variant) < 2 && have.variant != "" || p.variant == "" && have.variant != "" {
		return 0
	}
	if have.variant == "" {
		return 1
	}
	if have.variant < p.variant {
		return 1 + int(have.variant[1])
	}
	return 0
}
