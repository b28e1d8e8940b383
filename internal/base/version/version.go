// Package version says which Lodge this is.
package version

// Version is the release that this tree becomes (semantic versioning).
const Version = "0.1.0"
