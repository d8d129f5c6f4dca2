package image

import (
	"fmt"
	"os"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Keychain finds credentials where Docker and Podman keep them: the file named by REGISTRY_AUTH_FILE first,
// then Docker's configuration (in DOCKER_CONFIG or ~/.docker) with its credential helpers, then Podman's.
func Keychain() authn.Keychain {
	return authn.NewMultiKeychain(authFile{}, authn.DefaultKeychain)
}

// authFile is the keychain of REGISTRY_AUTH_FILE.
type authFile struct{}

// Resolve implements authn.Keychain.
func (authFile) Resolve(target authn.Resource) (authn.Authenticator, error) {
	path := os.Getenv("REGISTRY_AUTH_FILE")
	if path == "" {
		return authn.Anonymous, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("REGISTRY_AUTH_FILE: %w", err)
	}
	defer f.Close()
	file, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("REGISTRY_AUTH_FILE %s: %w", path, err)
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		c, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, err
		}
		if c.ServerAddress = ""; c != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: c.Username, Password: c.Password, Auth: c.Auth,
				IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}
