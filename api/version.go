package api

// Version says what answers.
type Version struct {
	Version string `json:"version" doc:"of lodged" example:"0.1.0"`
	API     string `json:"api" doc:"of this interface" example:"v1"`
}

// Rename asks for another name.
type Rename struct {
	Name string `json:"name" doc:"the new name" example:"web2"`
}
