#!/bin/sh
# Builds the launch helper: build.sh OUTPUT. Needs gcc (or $CC) and nothing else.
set -eu
out=$1
here=$(dirname "$0")
${CC:-gcc} -std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fno-pie -no-pie -nostdlib -static -s \
	-Wl,-z,noexecstack -Wl,--build-id=none -o "$out.new" "$here/launch.c"
chmod 0555 "$out.new"
mv "$out.new" "$out"
