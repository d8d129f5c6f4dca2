package scratch

var DeviceOf = deviceOf
