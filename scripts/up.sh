#!/usr/bin/env bash
# up.sh: start lodged, build the image debian/12 and the kernels that guests with
# one of their own boot, launch a guest of each model, wait until they answer and
# serve a page, and show what there is. Doing it again is harmless.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LODGE_DATA:=/var/lib/lodge}" "${LODGE_RUN:=/run/lodge}"
export PATH="$PWD/bin:$PATH" LODGE_HOST="unix://$LODGE_RUN/lodged.sock"

[ "$(id -u)" = 0 ] || { echo "up: make up needs root: sudo make up" >&2; exit 1; }
scripts/deps.sh run

if lodge version >/dev/null 2>&1; then
	echo "lodged is running"
else
	echo "starting lodged (data in $LODGE_DATA)"
	mkdir -p "$LODGE_DATA" "$LODGE_RUN"
	# shellcheck disable=SC2086 # LODGED_FLAGS is a list of words
	setsid nohup lodged --data-dir "$LODGE_DATA" --run-dir "$LODGE_RUN" ${LODGED_FLAGS:-} >>"$LODGE_DATA/lodged.log" 2>&1 </dev/null &
	daemon=$!
	for _ in $(seq 150); do
		lodge version >/dev/null 2>&1 && break
		kill -0 "$daemon" 2>/dev/null || break
		sleep 0.1
	done
	if ! lodge version >/dev/null 2>&1; then
		echo "up: lodged did not start; the end of $LODGE_DATA/lodged.log:" >&2
		tail -20 "$LODGE_DATA/lodged.log" >&2
		exit 1
	fi
fi

if ! found=$(lodge doctor --fix); then
	echo "the doctor found faults:"
	echo "$found"
fi
lodge image show debian/12 >/dev/null 2>&1 || echo "building the image debian/12 from Debian packages (some minutes, once)"
lodge image build debian/12
for kernel in um/debian-sid linux/debian-12; do
	lodge kernel show "$kernel" >/dev/null 2>&1 || echo "building the kernel $kernel from Debian packages (a minute, once)"
	lodge kernel build "$kernel"
done

# One guest of each model, from the same image.
model() { case $1 in web1) echo os ;; db1) echo paravirt ;; dev1) echo vm ;; esac; }
for name in web1 db1 dev1; do
	if lodge show "$name" >/dev/null 2>&1; then
		lodge start "$name"
	else
		lodge launch debian/12 "$name" --model "$(model "$name")"
	fi
done
for name in web1 db1 dev1; do
	echo "waiting until $name is up"
	for _ in $(seq 600); do
		state=$(lodge exec "$name" -- systemctl is-system-running 2>/dev/null || true)
		case $state in running | degraded) break ;; esac
		sleep 0.2
	done
	case $state in
	running | degraded) ;;
	*) echo "up: $name does not answer (its init says: ${state:-nothing}); see: lodge logs $name" >&2; exit 1 ;;
	esac
	lodge exec "$name" -- test -e /etc/systemd/system/page.socket 2>/dev/null || lodge cp scripts/page/. "$name":/
	lodge exec "$name" -- systemctl enable --quiet --now page.socket
done
echo
for name in web1 db1 dev1; do
	echo "web1 asks $name for its page:"
	lodge exec web1 -- curl -fsS --retry 3 --retry-connrefused --max-time 60 "http://$name/" | sed 's/^/  /'
done

echo
lodge ls
cat <<END

Three servers run on this one. Next:
  export PATH="$PWD/bin:\$PATH"$([ "$LODGE_RUN" = /run/lodge ] || printf ' LODGE_HOST="%s"' "$LODGE_HOST")
  lodge shell db1                                   a root shell in db1
  lodge exec dev1 -- ping -c1 web1                  guests find each other by name, whatever their model
  lodge launch debian/12 shop --cpus 2 --memory 1GiB --publish 8080:80
  lodge model web1 vm --restart                     the same server, on hardware of its own
  lodge top                                         what they use, live
  lodge rm -f web1                                  remove one
  make down                                         stop everything; data stays
END
