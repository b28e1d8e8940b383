#!/usr/bin/env bash
# install.sh: put the programs, the systemd unit and shell completion in place,
# and start lodged where systemd runs. Doing it again upgrades.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${DESTDIR:-}
[ -n "$root" ] || [ "$(id -u)" = 0 ] || { echo "install: needs root: sudo make install" >&2; exit 1; }
[ -n "$root" ] || scripts/deps.sh run

put() { # mode source target: replace the target in one step, also while it runs
	echo "installing $3"
	install -D -m "$1" "$2" "$root$3.new"
	mv -f "$root$3.new" "$root$3"
}
put 0755 bin/lodge /usr/local/bin/lodge
put 0755 bin/lodged /usr/local/sbin/lodged
put 0644 scripts/systemd/lodged.service /etc/systemd/system/lodged.service
completion=$(mktemp)
trap 'rm -f "$completion"' EXIT
bin/lodge completion bash >"$completion"
put 0644 "$completion" /usr/share/bash-completion/completions/lodge
bin/lodge completion zsh >"$completion"
put 0644 "$completion" /usr/share/zsh/vendor-completions/_lodge
bin/lodge completion fish >"$completion"
put 0644 "$completion" /usr/share/fish/vendor_completions.d/lodge.fish

if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl enable lodged
	systemctl restart lodged
	echo "lodged runs; guests that were up still are: lodge ls"
else
	echo "systemd does not run here: start lodged yourself"
fi
