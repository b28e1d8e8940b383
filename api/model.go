package api

// ModelWish asks that a guest be of another model.
type ModelWish struct {
	Model   string `json:"model" enum:"vm,paravirt,os" example:"vm"`
	Engine  string `json:"engine,omitempty" doc:"of those that run the model; empty: the first that can run here"`
	Restart bool   `json:"restart,omitempty" doc:"take the guest down for it and boot it again"`
}

// ModelChange is what a change of a guest's model would mean.
type ModelChange struct {
	Name       string   `json:"name"`
	From       string   `json:"from"`
	To         string   `json:"to"`
	Engine     string   `json:"engine,omitempty" doc:"that would run it"`
	Running    bool     `json:"running" doc:"it has to be taken down for it"`
	Copies     bool     `json:"copies" doc:"its private data is copied into another form"`
	Files      uint64   `json:"files"`
	Bytes      uint64   `json:"bytes" doc:"to copy"`
	NeedsBytes uint64   `json:"needs_bytes" doc:"free on the pool, while both forms are there"`
	FreeBytes  uint64   `json:"free_bytes" doc:"on the pool"`
	Seconds    float64  `json:"seconds" doc:"that the copying takes, about"`
	Changes    []string `json:"changes" doc:"what else is different for the guest, in words"`
	Refusal    string   `json:"refusal,omitempty" doc:"why it cannot be"`
	Hint       string   `json:"hint,omitempty" doc:"what would make it possible"`
}
