# shellcheck shell=bash
# guest.sh - functions of the checks' scripts in the guest: . /host/guest.sh
# ADDR, PORT and NQN (the target), BLOCK (bytes of a logical block) come from the driver's environment.
. /job/lib.sh
set -euo pipefail
: "${ADDR:=}" "${PORT:=}" "${NQN:=}" "${BLOCK:=512}"

die() { echo "FAILED: $*" >&2; exit 1; }

controller() {    # controller: wait for a live controller of NQN and print its name, nvme0 for instance
  local c
  for _ in $(seq 200); do
    for c in /sys/class/nvme/nvme*; do
      if [ "$(cat "$c/subsysnqn" 2>/dev/null)" = "$NQN" ] && [ "$(cat "$c/state" 2>/dev/null)" = live ]; then
        echo "${c##*/}"; return
      fi
    done
    sleep 0.05
  done
  die "no live controller of $NQN"
}

connect() {       # connect [OPTIONS]: sets DEV and CTRL
  modprobe nvme-tcp
  nvme connect -t tcp -a "$ADDR" -s "$PORT" -n "$NQN" -c 1 "$@"
  attached
}

attached() {      # attached: sets DEV (/dev/nvme0n1) and CTRL (nvme0) of the connection there is
  CTRL=$(controller)
  DEV=$(nvme_dev "$NQN") || die "no namespace of $NQN appeared"
  for _ in $(seq 100); do                              # the size comes after the node
    [ "$(blockdev --getsize64 "$DEV" 2>/dev/null || echo 0)" -gt 0 ] && return
    sleep 0.05
  done
  die "$DEV has no size"
}

disconnect() {    # disconnect: and wait until the device is gone
  nvme disconnect -n "$NQN"
  for _ in $(seq 100); do
    grep -qsx "$NQN" /sys/class/nvme/nvme*/subsysnqn || return 0
    sleep 0.05
  done
  die "the controller of $NQN does not go away"
}

roundtrip() {     # roundtrip DEV BYTES [OFFSET_MIB]: random bytes written and read back
  local offset=${3:-0}
  head -c "$2" /dev/urandom >/tmp/roundtrip
  dd if=/tmp/roundtrip of="$1" bs=1M seek="$offset" oflag=direct conv=notrunc,fsync status=none
  blockdev --flushbufs "$1"
  dd if="$1" of=/tmp/readback bs=1M skip="$offset" count=$((($2 + 1048575) / 1048576)) iflag=direct status=none
  cmp -n "$2" /tmp/readback /tmp/roundtrip || die "what was read is not what was written"
}

verify() {        # verify DEV MIB [FIO OPTIONS]: crc32c over mixed sizes, one block to 1 MiB, 32 deep
  local dev=$1 mib=$2; shift 2
  # The kernel's initiator sends without MSG_NOSIGNAL in the submitter's context: when the target goes away at that
  # moment ("failed to send request -32") the program that writes gets a SIGPIPE for its block device.
  (trap '' PIPE
   fio --name=verify --filename="$dev" --size="${mib}m" --rw=randwrite --ioengine=libaio --direct=1 --iodepth=32 \
     --bssplit="$BLOCK/20:4k/30:16k/20:60k/10:128k/15:1m/5" --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
     --randseed=4420 --output-format=terse --terse-version=3 "$@" >/tmp/fio.out 2>/tmp/fio.err) ||
    { cat /tmp/fio.err /tmp/fio.out; die "fio verify"; }
  ! grep -q . /tmp/fio.err || cat /tmp/fio.err
  awk -F';' '{ printf "fio: read %d KiB, written %d KiB, error %d\n", $6, $47, $5 }' /tmp/fio.out
}

is_zero() {       # is_zero DEV OFFSET_MIB MIB
  dd if="$1" bs=1M skip="$2" count="$3" iflag=direct status=none | cmp -n $(($3 * 1048576)) - /dev/zero
}

filesystem() {    # filesystem ext4|xfs: make, fill, unmount, check, reconnect, compare; MOUNT options allowed in OPTIONS
  local kind=$1; shift
  connect "$@"
  modprobe "$kind"
  case $kind in
    ext4) mkfs.ext4 -q -F "$DEV" ;;
    xfs)  mkfs.xfs -q -f "$DEV" ;;
  esac
  mount "$DEV" /mnt
  mkdir /mnt/tree
  cp -r /usr/lib/python3*/{json,email,asyncio,xml,unittest} /mnt/tree/
  dd if=/dev/urandom of=/mnt/big bs=1M count=24 status=none
  rm -r /mnt/tree/xml
  fstrim -v /mnt
  (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/tmp/sums
  umount /mnt
  check_filesystem "$kind"
  disconnect
  connect "$@"
  check_filesystem "$kind"
  mount "$DEV" /mnt
  (cd /mnt && sha256sum --quiet -c /tmp/sums)
  echo "$(wc -l </tmp/sums) files compared, $(df -h --output=used /mnt | tail -1) in use"
  umount /mnt
  disconnect
}

check_filesystem() {
  case $1 in
    ext4) e2fsck -f -n "$DEV" ;;
    xfs)  xfs_repair -n "$DEV" 2>&1 ;;
  esac
}

identifiers() {   # identifiers: what must not change when a target comes back
  local n=${DEV##*/}
  for f in uuid nguid eui wwid size; do
    [ ! -e "/sys/block/$n/$f" ] || echo "$f $(cat "/sys/block/$n/$f" 2>/dev/null)"
  done
  for f in serial model firmware_rev; do echo "$f $(cat "/sys/class/nvme/$CTRL/$f")"; done
}

nvmet_backing() { # nvmet_backing MIB BLOCK: a block device in memory with that logical block size
  if [ "$2" = 512 ]; then ramdisk "$1"
  else
    modprobe loop
    truncate -s "$1M" /tmp/namespace
    losetup -f --show -b "$2" /tmp/namespace
  fi
}
