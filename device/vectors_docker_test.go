package device_test

// dockerSuites are the suites of device: the languages in which GPUs are asked for, and moby's drivers.
var dockerSuites = map[string]suite{}
