package network

import (
	"testing"

	"github.com/berth-project/berth/engine/oci/vmtest"
)

// What needs no programs of the host, again on an older kernel than most machines have.
func TestOnDebiansKernel(t *testing.T) {
	r := vmtest.Run(t, vmtest.Config{
		Files:    map[string]string{"/bin/network.test": vmtest.Build(t, ".")},
		Commands: [][]string{{"network.test", "-test.v", "-test.run=^(TestNone|TestCloseFreesThePool|TestPoolGivesAgain|TestPoolClosesWhatHasTraces|TestPoolRuns|TestBridge|TestBridgeSourceAddress|TestBridgeAddressesRunOut)$"}},
	})
	if r.Status[0] != 0 {
		t.Errorf("%s", r.Output)
	}
}
