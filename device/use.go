package device

// Use is how busy a device is at the moment.
type Use struct {
	Busy   *int   `json:"busy_percent,omitempty"` // of the time; nil if unknown
	Memory *int64 `json:"memory_used,omitempty"`  // bytes; nil if unknown
}
