#!/usr/bin/env bash
# deps.sh build|run|test|long|bench: install the Debian packages that the purpose
# needs and this machine lacks, and say so. Does nothing, silently and fast,
# when all are there.
set -euo pipefail

# What is needed, as "program-or-file:package".
build="gcc:gcc /usr/include/linux/mount.h:linux-libc-dev /usr/include/stdio.h:libc6-dev"
run="mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs mkfs.erofs:erofs-utils mkfs.btrfs:btrfs-progs nft:nftables ip:iproute2 busybox:busybox-static
 /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
 qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf swtpm:swtpm depmod:kmod"
test="$run curl:curl jq:jq tmux:tmux dhclient:isc-dhcp-client cpio:cpio patch:patch
 grub-mkrescue:grub-common /usr/lib/grub/i386-pc:grub-pc-bin /usr/lib/grub/x86_64-efi:grub-efi-amd64-bin xorriso:xorriso mformat:mtools
 qemu-ga:qemu-guest-agent /boot/memtest86+x64.bin:memtest86+ /boot/invaders.exec:grub-invaders"
long="$test /usr/lib/debian-installer/images/12/amd64/text:debian-installer-12-netboot-amd64"
bench="$build $test crun:crun runc:runc lxc-start:lxc newuidmap:uidmap lxd:lxd"

purpose=${1:?build, run, test, long or bench}
missing=()
for need in ${!purpose}; do
	what=${need%:*} package=${need##*:}
	case $what in
	/*) [ -e "$what" ] || missing+=("$package") ;;
	*) command -v "$what" >/dev/null || [ -x "/usr/sbin/$what" ] || missing+=("$package") ;;
	esac
done

if ! command -v go >/dev/null; then
	if [ -x /usr/local/go/bin/go ]; then
		echo "deps: add /usr/local/go/bin to PATH" >&2
		exit 1
	fi
	missing+=(golang-go)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" != 0 ]; then
	echo "deps: these packages are missing: ${missing[*]}" >&2
	echo "deps: install them as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive

# Debian 12's own Go cannot fetch the version that go.mod names; that of its
# backports can. They are asked on the mirror that the host uses, and only now.
from_backports() {
	local site list
	site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -1)
	[ -n "$site" ] || { echo "apt knows no mirror of Debian bookworm"; return 1; }
	list=/etc/apt/sources.list.d/lodge-deps-$$.list
	echo "deb $site bookworm-backports main" >"$list"
	apt-get update -qq && apt-get install -y -qq --no-install-recommends -t bookworm-backports "$1" || { rm -f "$list"; return 1; }
	rm -f "$list"
	apt-get update -qq
}

install() {
	apt-get update -qq || return 1
	if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ] && [[ " ${missing[*]} " == *" golang-go "* ]]; then
		from_backports golang-go || return 1
	fi
	apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

if ! install >"$log" 2>&1; then
	tail -20 "$log" >&2
	exit 1
fi
