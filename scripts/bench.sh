#!/usr/bin/env bash
# bench.sh [FLAGS OF test/bench]: measure what docs/SPECIFICATION.md promises,
# beside the kernel's floor and the peers, by turns. It takes up to an hour;
# everything runs in namespaces of its own. The figures go to the terminal and
# to build/bench/bench.json. --only=PART[,PART...] makes some of start, commands,
# density, uml, qemu, migrate, change; make bench PART=uml does the same.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: make bench needs root: sudo make bench" >&2; exit 1; }
scripts/deps.sh bench

out=build/bench tag=lodge-bench-$$
mkdir -p "$out"
gcc -O2 -Wall -static -o "$out/floor" test/bench/floor/floor.c
gcc -O2 -Wall -static -o "$out/inside" test/bench/inside/inside.c
cp -f internal/daemon/embedded/lodge-launch internal/daemon/embedded/lodge-keeper "$out/"
CGO_ENABLED=0 go build -o "$out/bench" ./test/bench
CGO_ENABLED=0 go test -c -o "$out/qemu.test" ./internal/engine/qemu

# What the namespaces do not take with them when they end, however they end.
cleanup() {
	while read -r device file; do
		case $file in *"/$tag-"*) losetup -d "$device" || true ;; esac
	done < <(losetup -ln -O NAME,BACK-FILE)
	rm -rf /var/tmp/"$tag"-*
	local group
	for _ in $(seq 50); do # groups empty a moment after their processes ended
		while read -r group; do
			find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
		done < <(find /sys/fs/cgroup -maxdepth 3 -type d -name "*$tag*" -prune)
		[ -n "$(find /sys/fs/cgroup -maxdepth 3 -type d -name "*$tag*" -print -quit)" ] || break
		sleep 0.1
	done
}
trap cleanup EXIT

status=0
timeout --foreground --signal=TERM --kill-after=30 90m "$out/bench" --parts "$out" --out "$out" --tag "$tag" "$@" & # a trap runs at once beside what is in the background
bench=$!
trap 'kill -TERM "$bench" 2>/dev/null' INT TERM
while kill -0 "$bench" 2>/dev/null; do wait "$bench" && status=0 || status=$?; done
exit "$status"
