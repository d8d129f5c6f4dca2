package device_test

// nvidiaSuites are the suites of device/nvidia and device/require.
var nvidiaSuites = map[string]suite{}
