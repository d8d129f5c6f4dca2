package docker_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/moby/moby/client"
)

// testRef names the test image on the tests' daemon.
const testRef = "localhost/enginetest:1"

// started is a daemon of many tests, started by the first that needs it.
type started struct {
	once   sync.Once
	daemon *dockertest.Daemon
	err    error
}

var shared, sharedPodman started

func TestMain(m *testing.M) {
	docker.KeeperMain() // this program is the keeper of bound sandboxes, too
	followerMain()
	flag.Parse()
	// What takes time here is the daemon, not this process.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, s := range []*started{&shared, &sharedPodman, &sharedRemote} {
		if s.daemon == nil {
			continue
		}
		if err := s.daemon.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the daemon:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func daemon(t testing.TB) *dockertest.Daemon {
	t.Helper()
	d, err := sharedDaemon()
	if err != nil {
		t.Fatal("needs a Docker daemon:", err)
	}
	return d
}

func sharedDaemon() (*dockertest.Daemon, error) {
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
		if err != nil {
			shared.err = err
			return
		}
		shared.daemon, shared.err = dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Bridge: true})
		if shared.err == nil {
			shared.err = importImage(context.Background(), shared.daemon)
		}
	})
	return shared.daemon, shared.err
}

// importImage gives the daemon the test image.
func importImage(ctx context.Context, d *dockertest.Daemon) error {
	var root bytes.Buffer
	if err := enginetest.RootFS(ctx, &root); err != nil {
		return err
	}
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		return err
	}
	defer func() { _ = api.Close() }()
	res, err := api.ImageImport(ctx, client.ImageImportSource{Source: &root, SourceName: "-"}, testRef, client.ImageImportOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = res.Close() }()
	var answer bytes.Buffer
	_, err = answer.ReadFrom(res)
	return err
}

func newEngine(t testing.TB, cfg docker.Config) (*docker.Engine, berth.Image) {
	t.Helper()
	if cfg.Host == "" {
		cfg.Host = daemon(t).Host()
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	e, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	img, err := e.Image(t.Context(), berth.ImageRequest{Ref: testRef})
	if err != nil {
		t.Fatal(err)
	}
	return e, img
}
