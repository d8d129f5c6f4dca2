package device_test

// amdSuites are the suites of device/amd.
var amdSuites = map[string]suite{}
