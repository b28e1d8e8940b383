#!/usr/bin/env bash
# test.sh [long]: every check and test. Tests that start daemons and guests make
# network, mount and process namespaces of their own. With "long" also those
# that take longer than CI has.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/deps.sh "${1:-test}"
scripts/check.sh
export LODGE_TEST_COMPLETE=1 # nothing that tests need is missing now: see sandbox.Missing
package=20m whole=40m # how long tests may take on a busy machine
if [ "${1:-}" = long ]; then
	export LODGE_TEST_LONG=1
	package=60m whole=3h
fi

echo "test: packages, with the race detector"
# shellcheck disable=SC2046 # a list of packages
CGO_ENABLED=1 go test -race -timeout "$package" $(go list ./... | grep -v -e /test/bench -e /test/e2e)
echo "test: the real programs and guests"
go test -count=1 -timeout "$whole" -v ./test/e2e 2>&1 | grep -v -e '^=== ' -e '^    --- PASS'
