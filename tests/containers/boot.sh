# The first process of the machine of machine.py, in namespaces of its own: mounts what a machine has, waits for the
# network, and becomes Docker's daemon. Arguments: the machine's files, Docker's files, the directory with the checkout.
set -eu
cd "$1"
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p checkout var/lib/docker old
mount --bind "$2" var/lib/docker
mount --bind "$3" checkout
# slirp4netns answers there.
echo "nameserver 10.0.2.3" > etc/resolv.conf
echo 1 > proc/sys/net/ipv4/ip_forward
# Not `chroot`: containers cannot be started in one.
pivot_root . old
umount -l old
until ip link show tap0 > /dev/null 2>&1; do sleep 0.1; done
exec dockerd --cgroup-parent=/sentiment-containers --group=root
