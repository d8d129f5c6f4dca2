// Package oci is the embedded engine: it runs containers on this host, with no daemon. What watches them is
// a small process of berth's own, one a data directory, that comes when it is needed and goes when it is
// idle; see package monitor. Images come from package image.
package oci

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/image"
)

// Config configures an Engine.
type Config struct {
	// Dir is the data directory. Everything of the engine lies in it.
	Dir string
	// Monitor is the command that runs MonitorMain; the flags --data-dir DIR are added. It must run the same
	// version of berth.
	Monitor []string
	// Runtime is what steps are started by that do not say: "direct" (the default), "auto", or the name or path
	// of an OCI runtime.
	Runtime string
	// Worker is the command that goes on with a task whose sandbox has LabelResume; the sandbox's ID is added.
	// nil: nobody does.
	Worker []string
	// Idle is how long the monitor stays without containers and clients; 0 is 10 s.
	Idle   time.Duration
	Logger *slog.Logger
	// Images configures the image store; its directory is set.
	Images image.Options
}

// Engine is the embedded engine. It may be used concurrently.
type Engine struct {
	cfg      Config
	instance string
	images   *image.Store
	client   *client
	users    identities
}

var (
	_ berth.Engine = (*Engine)(nil)
	_ berth.Puller = (*Engine)(nil)
)

// LabelResume is a label that, set to "1" on a sandbox, has the monitor call the worker command when a container of the
// sandbox has ended, when an earlier monitor was killed and the containers with it, or when its client is gone.
const LabelResume = "berth.resume"

// New opens the engine of a data directory, which is made where it is not there.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Runtime == "" {
		cfg.Runtime = "direct"
	}
	for _, d := range []string{cfg.Dir, filepath.Join(cfg.Dir, "run"), filepath.Join(cfg.Dir, "sandboxes")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w: %w", kindOf(err), err)
		}
	}
	instance, err := Instance(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Images.Dir = filepath.Join(cfg.Dir, "images")
	images, err := image.Open(cfg.Images)
	if err != nil {
		return nil, err
	}
	return &Engine{
		cfg: cfg, instance: instance, images: images,
		client: &client{dir: cfg.Dir, command: cfg.Monitor, worker: cfg.Worker, stay: cfg.Idle, log: cfg.Logger},
	}, nil
}

func kindOf(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return berth.ErrDenied
	}
	return berth.ErrUnavailable
}

// Instance is the random id of a data directory, made on first use. Whatever berth makes outside the
// directory carries it, so that two berths never touch each other's.
func Instance(dir string) (string, error) {
	path := filepath.Join(dir, "instance")
	for {
		raw, err := os.ReadFile(path)
		if err == nil {
			id := strings.TrimSpace(string(raw))
			return id, berth.CheckID(id)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("data directory: %w: %w", kindOf(err), err)
		}
		tmp := filepath.Join(dir, "instance."+rand.Text())
		if err := os.WriteFile(tmp, []byte(berth.NewID()[:12]+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("data directory: %w: %w", kindOf(err), err)
		}
		err = os.Link(tmp, path) // the first of several processes wins
		_ = os.Remove(tmp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
}

// Close closes the connections to the monitor. Containers run on; bound sandboxes end.
func (e *Engine) Close() error {
	return errors.Join(e.client.close(), e.images.Close())
}

// Images is the engine's image store.
func (e *Engine) Images() *image.Store { return e.images }

// Image finds or pulls an image.
func (e *Engine) Image(ctx context.Context, req berth.ImageRequest) (berth.Image, error) {
	return e.images.Image(ctx, req)
}

// Info says what this host is and can do.
func (e *Engine) Info(ctx context.Context) (berth.Info, error) {
	return hostInfo(ctx, e.cfg)
}

// Open makes a sandbox.
func (e *Engine) Open(ctx context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	set, err := checkSandbox(&spec)
	if err != nil {
		return nil, err
	}
	req := &wire.Request{Op: wire.OpOpen, Spec: &spec}
	if !spec.Bound {
		var a wire.Answer
		if err := e.client.call(ctx, req, &a); err != nil {
			return nil, err
		}
		return newSandbox(e, a.Sandbox, &spec, set), nil
	}
	line, err := e.client.bind(ctx, req)
	if err != nil {
		return nil, err
	}
	s := newSandbox(e, line.desc, &spec, set)
	s.line = line
	return s, nil
}

// Attach finds a sandbox again.
func (e *Engine) Attach(ctx context.Context, id string) (berth.Sandbox, error) {
	if _, err := os.Stat(filepath.Join(e.cfg.Dir, "sandboxes", id)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sandbox %s: %w", id, berth.ErrNotFound) // no need to wake a monitor
	}
	var a wire.Answer
	if err := e.client.call(ctx, &wire.Request{Op: wire.OpAttach, Sandbox: id}, &a); err != nil {
		return nil, err
	}
	return &Sandbox{e: e, id: id, desc: a.Sandbox}, nil
}

// List names everything that this data directory has.
func (e *Engine) List(ctx context.Context) ([]berth.Status, error) {
	entries, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil || len(entries) == 0 && !e.client.running() {
		return nil, err
	}
	var a wire.Answer
	if err := e.client.call(ctx, &wire.Request{Op: wire.OpList}, &a); err != nil {
		return nil, err
	}
	return a.List, nil
}

// Dir is the engine's data directory.
func (e *Engine) Dir() string { return e.cfg.Dir }
