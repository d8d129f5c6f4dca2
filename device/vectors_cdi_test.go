package device_test

// cdiSuites are the suites of device/cdi: CDI specs and the hooks of cmd/berth-cdi-hook.
var cdiSuites = map[string]suite{}
