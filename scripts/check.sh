#!/usr/bin/env bash
# check.sh: what needs no guests: formatting, vet, staticcheck, shell scripts.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "check: formatting"
unformatted=$(gofmt -l api cmd internal test)
[ -z "$unformatted" ] || { echo "check: not formatted (run make fmt):"; echo "$unformatted"; exit 1; } >&2
echo "check: go vet"
go vet ./...
echo "check: staticcheck"
go tool -modfile=tools/go.mod staticcheck ./...
