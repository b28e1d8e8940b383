#!/usr/bin/env bash
# down.sh: stop all guests cleanly, then the daemon and the keeper, and take
# away networks, mounts and control groups. Data stays. Doing it again is
# harmless.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LODGE_DATA:=/var/lib/lodge}" "${LODGE_RUN:=/run/lodge}"
if [ ! -x bin/lodged ]; then
	[ -e "$LODGE_RUN/lodged.sock" ] || { echo "nothing is up"; exit 0; }
	make --no-print-directory build
fi
# shellcheck disable=SC2086 # LODGED_FLAGS is a list of words
exec bin/lodged down --data-dir "$LODGE_DATA" --run-dir "$LODGE_RUN" ${LODGED_FLAGS:-}
