# The life of an rpm in a copy of this machine: installed, judged, changed, installed again, removed.
# $1 is the package, $2 an empty directory. Nothing outside this mount namespace is changed: the copy is
# this machine's root, read only, under a file system in memory.
set -eu
package=$1 place=$2
mount -t tmpfs -o mode=0755 trial "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" trial "$place/root"
root=$place/root
mkdir -p "$root/proc" "$root/dev" "$root/run" "$root/tmp"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"

# Debian's rpm wants to be told that it is meant.
manage() { rpm --root "$root" --force-debian --nodeps "$@" 2>&1; }
configuration=$root/etc/portcullis/portcullis.toml

said=$(manage -i "$package") || { echo "does not install: $said"; exit 1; }
echo "$said" | grep -iE 'error|warning|failed' && { echo "installed with words"; exit 1; }
said=$(rpm --root "$root" -V --nodeps portcullis) || { echo "rpm -V: $said"; exit 1; }
[ -z "$said" ] || { echo "rpm -V: $said"; exit 1; }
echo "installed; rpm -V says nothing"
chroot "$root" getent passwd portcullis >/dev/null || { echo "no user portcullis"; exit 1; }
owner=$(chroot "$root" stat --format='%a %U:%G' /etc/portcullis /etc/portcullis/portcullis.toml | tr '\n' ' ')
[ "$owner" = "750 root:portcullis 640 root:portcullis " ] || { echo "configuration: $owner"; exit 1; }
echo "configuration: $owner"
chroot "$root" portcullis --version

# What an administrator writes outlives another version, and is not removed with it.
echo '# changed' >> "$configuration"
said=$(manage -U --force "$package") || { echo "does not install again: $said"; exit 1; }
tail -n 1 "$configuration" | grep -q '^# changed$' || { echo "the configuration was replaced"; exit 1; }
# (Of a file that is meant to change, the size, digest and time may differ.)
said=$(rpm --root "$root" -V --nodeps portcullis | grep -v '^S\.5\.\.\.\.T\.  c /etc/portcullis/portcullis.toml$' || true)
[ -z "$said" ] || { echo "rpm -V: $said"; exit 1; }
echo "installed again; the changed configuration is kept"
said=$(manage -e portcullis) || { echo "does not go: $said"; exit 1; }
left=$(cd "$place/upper" && find . -iname '*portcullis*' -not -type c -not -path './tmp/*' | sort | tr '\n' ' ')
expected="./etc/portcullis ./etc/portcullis/portcullis.toml.rpmsave "
[ "$left" = "$expected" ] || { echo "left after it was removed: $left"; exit 1; }
echo "removed; left: $left"
