package runner

import (
	"os"
	"strconv"
)

const driverEnv = "RUNNER_TEST_DRIVER"

func monitorPID() int {
	if os.Getenv("RUNNER_TEST_MONITOR") == "" {
		return os.Getpid()
	}
	n, _ := strconv.Atoi(os.Getenv("RUNNER_TEST_MONITOR"))
	return n
}

func driverMain() {}
