#!/bin/sh
# Makes the root folder that eipnet has in a container, out of this system's own files: iptables in both
# flavours, with the libraries that it needs, and nothing else. eipnet itself is one static file.
#
#   plugin/rootfs.sh FOLDER
set -eu
dest=$1

for dir in data dev etc host proc run sys tmp usr/local/bin; do
	mkdir -p "$dest/$dir"
done
chmod 1777 "$dest/tmp"

# copy FILE...: to the same path below the new root, links followed.
copy() {
	for file; do
		mkdir -p "$dest$(dirname "$file")"
		cp -L "$file" "$dest$file"
	done
}

found=
for flavour in nft legacy; do
	# One program for all names.
	program=$(command -v "xtables-$flavour-multi") || continue
	found=$program
	copy "$program"
	for name in iptables ip6tables; do
		ln -sf "${program##*/}" "$dest${program%/*}/$name-$flavour"
		ln -sf "${program##*/}" "$dest${program%/*}/$name-$flavour-restore"
	done
	# shellcheck disable=SC2046
	copy $(ldd "$program" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }')
done
if [ -z "$found" ]; then
	echo "rootfs.sh: there is no iptables here: install the package iptables" >&2
	exit 1
fi

# Without the extensions the rules that users have in DOCKER-USER cannot be listed.
comment=$(find /usr/lib* /lib* -name libxt_comment.so | head -n 1)
extensions=${comment%/*}
copy "$extensions"/*.so
# shellcheck disable=SC2046
copy $(for so in "$extensions"/*.so; do ldd "$so" 2>/dev/null; done | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\// && $i !~ /:$/) print $i }' | sort -u)
