#!/bin/sh
# Builds the library that stands between paravirtual guests and the host:
# build.sh OUTPUT. Needs gcc (or $CC) and the C library's headers.
set -eu
out=$1
here=$(dirname "$0")
${CC:-gcc} -std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fPIC -shared -nostdlib -s \
	-Wl,-z,noexecstack -Wl,--build-id=none -Wl,-soname,lodge-door.so -o "$out.new" "$here/door.c"
chmod 0555 "$out.new"
mv "$out.new" "$out"
