#!/usr/bin/env bash
# uninstall.sh: stop guests and daemon, remove what install.sh put in place, and
# give the host back the limits it had. Data stays in /var/lib/lodge.
set -euo pipefail
root=${DESTDIR:-}
[ -n "$root" ] || [ "$(id -u)" = 0 ] || { echo "uninstall: needs root: sudo make uninstall" >&2; exit 1; }
if [ -z "$root" ]; then
	[ -d /run/systemd/system ] && systemctl disable --now lodged 2>/dev/null || true
	if [ -x /usr/local/sbin/lodged ]; then
		/usr/local/sbin/lodged down
		/usr/local/sbin/lodged restore-limits
	fi
fi
for path in /usr/local/bin/lodge /usr/local/sbin/lodged /etc/systemd/system/lodged.service \
	/usr/share/bash-completion/completions/lodge /usr/share/zsh/vendor-completions/_lodge \
	/usr/share/fish/vendor_completions.d/lodge.fish; do
	[ -e "$root$path" ] || continue
	echo "removing $path"
	rm -f "$root$path"
done
[ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
echo "data stays in /var/lib/lodge; remove it yourself when nobody needs it"
