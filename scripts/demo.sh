#!/bin/sh
# Two people chat, end to end: a server on loopback with a fresh database, two
# accounts, messages both ways, and one that waits while its reader is away.
set -eu
cd "$(dirname "$0")/.."
home=$(mktemp -d)
server=
cleanup() {
	[ -z "$server" ] || kill "$server" 2>/dev/null || true
	[ -z "$server" ] || wait "$server" 2>/dev/null || true
	rm -rf "$home"
}
trap cleanup EXIT INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { # run NAME ARGUMENTS…: qpc as NAME, shown as it would be typed
	name=$1
	shift
	printf '\033[2m%s$\033[0m qpc %s\n' "$name" "$*"
	QPC_HOME=$home/$name QPC_SERVER=$address QPC_PASSWORD_FILE=$home/$name.password bin/qpc "$@" 2>&1
}

say "The server starts."
# Port 0 is a free port; the log says which.
printf '$ qpcd --listen 127.0.0.1:0\n'
bin/qpcd --listen 127.0.0.1:0 --data-dir "$home/data" 2>"$home/log" &
server=$!
address=
while [ -z "$address" ]; do
	kill -0 "$server" 2>/dev/null || { cat "$home/log"; exit 1; }
	address=$(sed -n 's/.*msg=listening .*addr[a-z]*="\{0,1\}\[\{0,1\}\(127\.0\.0\.1:[0-9]*\).*/\1/p' "$home/log" | head -n 1)
	[ -n "$address" ] || sleep 0.05
done
cat "$home/log"

for name in alice bob; do
	echo "the password of $name" >"$home/$name.password"
	say "$name registers. The password never leaves this machine (OPAQUE)."
	run $name register $name
done

say "alice writes while bob is away. The server stores ciphertext."
run alice send bob "Hello Bob, are you at home?"
run alice send bob "Dinner is at seven 🍝"

say "bob comes back and reads them, in order."
run bob recv

say "bob answers; alice reads."
run bob send alice "On my way!"
run alice recv

say "Both compare their safety number: nobody sits between them."
run alice verify bob
run bob verify alice

say "What the router has on disk, looked through for those words:"
for word in "Dinner" "On my way"; do
	printf '$ grep -sc "%s" data/*\n' "$word"
	grep -sc "$word" "$home"/data/* | sed "s|$home/||" || true
done
say "Done. By hand: bin/qpcd in one terminal; bin/qpc register NAME and bin/qpc chat NAME in two others."
