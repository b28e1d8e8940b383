#!/bin/sh
# Builds the library that lets QEMU map memory images: build.sh OUTPUT. Needs
# gcc (or $CC) and the C library's headers.
set -eu
out=$1
here=$(dirname "$0")
${CC:-gcc} -std=gnu11 -D_GNU_SOURCE -O2 -U_FORTIFY_SOURCE -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fPIC -shared -nostdlib -s \
	-Wl,-z,noexecstack -Wl,--build-id=none -Wl,-soname,lodge-image.so -o "$out.new" "$here/image.c"
chmod 0555 "$out.new"
mv "$out.new" "$out"
