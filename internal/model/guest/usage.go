package guest

// Usage is what a running guest uses at one moment. Counters rise from the
// start of the run; gauges are of now.
type Usage struct {
	CPUSeconds  float64 `json:"cpu_seconds"`  // counter
	Memory      uint64  `json:"memory_bytes"` // gauge, caches included
	MemoryCache uint64  `json:"memory_cache_bytes"`
	MemoryLimit uint64  `json:"memory_limit_bytes"` // 0: none
	Swap        uint64  `json:"swap_bytes"`
	Processes   int64   `json:"processes"`
	ReadBytes   uint64  `json:"read_bytes"`  // counter, of block devices
	WriteBytes  uint64  `json:"write_bytes"` // counter
	RxBytes     uint64  `json:"rx_bytes"`    // counter, as the guest counts
	TxBytes     uint64  `json:"tx_bytes"`    // counter
	RxPackets   uint64  `json:"rx_packets"`  // counter
	TxPackets   uint64  `json:"tx_packets"`  // counter
	OOMKills    uint64  `json:"oom_kills"`   // counter
	Throttled   float64 `json:"throttled_seconds"`
}
