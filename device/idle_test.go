package device

import (
	"os/user"
	"testing"
)

func TestIdles(t *testing.T) {
	accounts := map[string]string{"0": "root", "117": "nvidia-persistenced", "118": "nvpd", "1000": "a", "1001": "nvidia-smi"}
	lookup := func(uid string) (*user.User, error) {
		if name, ok := accounts[uid]; ok {
			return &user.User{Uid: uid, Username: name}, nil
		}
		return nil, user.UnknownUserIdError(1)
	}
	for name, tt := range map[string]struct {
		uid     uint32
		command string
		want    bool
	}{
		"root's":                          {0, "nvidia-smi", true},
		"root's, that is none":            {0, "python", false},
		"root's, of MPS":                  {0, "nvidia-cuda-mps", true},
		"of the daemon's account":         {117, "nvidia-persiste", true},
		"of the account on Debian":        {118, "nvidia-persiste", true},
		"of the account, that is none":    {117, "python", false},
		"a user's":                        {1000, "nvidia-smi", false},
		"of a user with a service's name": {1001, "nvidia-smi", false},
		"of a user without a name":        {4242, "nvidia-persiste", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Process{PID: 7, UID: tt.uid, Command: tt.command}).idles(lookup); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
