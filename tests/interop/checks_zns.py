"""Zoned namespaces with a kernel's initiator: nvme zns, blkzone, fio's zoned mode, zonefs, and a restarted target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from .bench import Bench, Skipped, check
from .checks import expect
from .peers import Layout, Peer

ZONE_MIB = 4
ZONES = ",zoned,zone-size=4M,zone-capacity=3M,max-open=8,max-active=10,zdes=64"
RAM = Layout("tcp", "ramdisk", 512, 256, zones=ZONES)
FILE = Layout("tcp", "file", 4096, 256, zones=ZONES)
_REFUSED = (r"nvme.*", r"I/O error, dev nvme\dc?\d?n\d", r"critical (medium|target) error", r"Buffer I/O error")

_HELPERS = r"""
single() {  # before 6.10: without the multipath layer, which does not tell the limits of zones
  modprobe -r nvme-tcp nvme-fabrics nvme-core; modprobe nvme-core multipath=N
}
[ $(cat /sys/module/nvme_core/parameters/multipath 2>/dev/null || echo Y) = Y ] || nvme_dev() {
  local d
  for _ in $(seq 100); do
    d=$(ls -d /sys/class/nvme/$CTRL/nvme*n* 2>/dev/null | head -1)
    [ -n "$d" ] && [ -b /dev/${d##*/} ] && { echo /dev/${d##*/}; return; }
    sleep 0.05
  done
  return 1
}
zones() {
  connect "$@"; blkzone reset $DEV                      # a file may have zones of a check that has failed
  [ $(cat /sys/module/nvme_core/parameters/multipath) = Y ] || deadline
}
deadline() { echo mq-deadline >/sys/block/${DEV##*/}/queue/scheduler; }  # before 6.10 it keeps a zone's writes in order
Z=$((4 * 1048576 / BLOCK))                              # blocks of a zone
C=$((3 * 1048576 / BLOCK))                              # and how many of them can be written
slba() { echo $(($1 * Z)); }
state() { blkzone report -o $(($1 * 8192)) -c 1 $DEV | sed -n 's/.*zcond:[ 0-9a-f]*(\(..\)).*/\1/p'; }
pointer() { blkzone report -o $(($1 * 8192)) -c 1 $DEV | sed -n 's/.*wptr 0x\([0-9a-f]*\).*/\1/p'; }
is() { local s; s=$(state $1); [ "$s" = $2 ] || die "zone $1 is $s and not $2"; }
refused() { local out; out=$("$@" 2>&1) && die "not refused: $*"; echo "refused: $out"; }
says() { local words=$1 out; shift; out=$("$@" 2>&1) && die "not refused: $*"
  grep -qi "$words" <<<"$out" || die "$*: $out"; }
reset() { blkzone reset -o $(($1 * 8192)) -c 1 $DEV; }  # what the kernel wants after a failed write
write() {   # write ZONE BLOCK BLOCKS
  dd if=/dev/urandom of=$DEV bs=$((BLOCK * $3)) seek=$((($(slba $1) + $2) * BLOCK)) count=1 iflag=fullblock \
    oflag=direct,seek_bytes conv=notrunc status=none; }
"""


@contextmanager
def _target(bench: Bench) -> Iterator[Peer]:
    """Run a target, with a guest that can use zones."""
    old = bench.kernel_version < (6, 10)
    if old:
        bench.run(f"{_HELPERS}single")
    try:
        with bench.target() as peer:
            yield peer
    finally:
        if old:
            bench.run("nvme disconnect-all; modprobe -r nvme-tcp nvme-fabrics nvme-core")


@check(RAM, FILE, quick=1, only_ours=True, allow=_REFUSED)
def zns(bench: Bench) -> None:
    """The kernel's limits, reports, every zone action, appends, and refusals, by nvme zns and blkzone."""
    with _target(bench):
        bench.run(
            _HELPERS
            + r"""
            zones
            q=/sys/block/${DEV##*/}/queue
            want() { [ "$(cat $q/$1)" = "$2" ] || die "$1: $(cat $q/$1) and not $2"; }
            want zoned host-managed; want nr_zones 64; want chunk_sectors 8192
            want max_open_zones 8; want max_active_zones 10; want zone_append_max_bytes 1048576
            nvme zns id-ctrl /dev/$CTRL; nvme zns id-ns $DEV -H; nvme zns list || true
            [ $(nvme zns id-ctrl /dev/$CTRL -o json | jq .zasl) = 8 ] || die zasl
            nvme zns id-ns $DEV -o json | jq -e '.mar == 9 and .mor == 7 and .lbafe[0].zdes == 1' || die id-ns
            [ $(nvme effects-log $DEV -c 2 2>/dev/null | grep -c -i 'zone') -ge 1 ] || echo "no zones in effects-log"
            nvme id-ns $DEV; nvme ns-descs $DEV; nvme cmdset-ind-id-ns $DEV || true
            nvme list-ns /dev/$CTRL --csi=2 | grep -q ':0x1$' || die "list-ns of the command set"

            # actions
            nvme zns open-zone $DEV -s $(slba 0); is 0 oe
            nvme zns close-zone $DEV -s $(slba 0); is 0 cl
            nvme zns finish-zone $DEV -s $(slba 0); is 0 fu
            nvme zns reset-zone $DEV -s $(slba 0); is 0 em
            says "zone.*state\|transition" nvme zns close-zone $DEV -s $(slba 0)
            says "zone.*state\|transition" nvme zns offline-zone $DEV -s $(slba 0)
            says "invalid field" nvme zns open-zone $DEV -s 1
            head -c 64 /dev/urandom >/tmp/extension
            nvme zns set-zone-desc $DEV -s $(slba 1) -d /tmp/extension; is 1 cl
            nvme zns report-zones $DEV -e -d 4; nvme zns report-zones $DEV -d 64 -p -v
            nvme zns report-zones $DEV -S 4 | grep -q 'nr_zones: 1$' || die "a report of closed zones"
            blkzone open -o 16384 -c 1 $DEV; is 2 oe; blkzone close -o 16384 -c 1 $DEV; is 2 cl
            blkzone finish -o 16384 -c 1 $DEV; is 2 fu
            blkzone reset $DEV; is 0 em; is 1 em; is 2 em

            # the write pointer
            write 3 0 8; is 3 oi; [ $(pointer 3) = $(printf %06x $((8 * BLOCK / 512))) ] || die "pointer $(pointer 3)"
            write 3 8 $((C - 8)); is 3 fu; refused write 3 0 8
            write 4 0 8; refused write 4 16 8; refused write 6 8 8; reset 4; reset 6; write 4 0 8; is 4 oi
            dd if=$DEV bs=1M skip=12 count=4 iflag=direct status=none | tail -c 1048576 | cmp -n 1048576 - /dev/zero
            head -c 8192 /dev/urandom >/tmp/data
            nvme zns zone-append $DEV -s $(slba 5) -d /tmp/data -z 8192 | tee /tmp/out
            grep -qi "$(printf %x $(slba 5))" /tmp/out || die "where the data went"
            nvme zns zone-append $DEV -s $(slba 5) -d /tmp/data -z 8192 | tee /tmp/out
            grep -qi "$(printf %x $(($(slba 5) + 8192 / BLOCK)))" /tmp/out || die "where the data went"
            dd if=$DEV bs=8192 skip=$((5 * 512 + 1)) count=1 iflag=direct status=none | cmp - /tmp/data
            says "boundary" nvme write $DEV -s $(($(slba 6) - 1)) -c 1 -z $((2 * BLOCK)) -d /tmp/data
            says "full" nvme zns zone-append $DEV -s $(slba 3) -d /tmp/data -z 8192
            nvme zns changed-zone-list $DEV

            # limits: implicitly opened zones give way, explicitly opened ones do not
            blkzone reset $DEV
            for z in 0 1 2 3 4 5 6 7; do nvme zns open-zone $DEV -s $(slba $z) >/dev/null; done
            says "open" nvme zns open-zone $DEV -s $(slba 8)
            refused write 8 0 8; reset 8
            nvme zns close-zone $DEV -s $(slba 0); write 8 0 8; is 8 oi
            nvme zns close-zone $DEV -s $(slba 1); write 9 0 8; write 8 8 8
            is 8 oi; says "active" nvme zns open-zone $DEV -s $(slba 10)
            nvme zns open-zone $DEV -s $(slba 0); is 9 cl; is 0 oe
            nvme zns finish-zone $DEV -a; is 0 fu; is 8 fu; is 10 em
            nvme zns reset-zone $DEV -a; is 0 em; is 8 em
            disconnect""",
            180,
        )


@check(RAM, FILE, only_ours=True)
def zns_fio(bench: Bench) -> None:
    """fio --zonemode=zbd: random and sequential writes, several jobs, verified."""
    with _target(bench):
        bench.note = bench.run(
            _HELPERS
            + r"""
            zones -i 2
            zbd() { fio --filename=$DEV --direct=1 --zonemode=zbd --ioengine=libaio --output-format=terse \
              --terse-version=3 --verify_fatal=1 --verify_state_save=0 "$@" >/tmp/fio.out 2>/tmp/fio.err ||
              { cat /tmp/fio.err /tmp/fio.out; die "fio $*"; }
              awk -F';' '{ printf "read %d KiB, written %d KiB; ", $6, $47 }' /tmp/fio.out >>/tmp/said; }
            rm -f /tmp/said
            zbd --name=seq --rw=write --bs=64k --iodepth=8 --size=64m --verify=crc32c --do_verify=1
            blkzone reset $DEV
            zbd --name=rand --rw=randwrite --bs=16k --iodepth=4 --size=32m --max_open_zones=6 --verify=crc32c
            blkzone reset $DEV
            zbd --name=jobs --rw=randwrite --bssplit=4k/50:64k/50 --iodepth=4 --numjobs=2 --size=64m \
              --offset_increment=128m --max_open_zones=8 --job_max_open_zones=4 --io_size=24m --group_reporting
            disconnect; echo; cat /tmp/said""",
            240,
        ).splitlines()[-1]


@check(FILE, only_ours=True, quick=1, allow=(*_REFUSED, r"block nvme\dn\d: no usable path"))
def zns_restart(bench: Bench) -> None:
    """Write pointers, states and data of a file's zones after the target was killed, and after an orderly restart."""
    with _target(bench) as peer:
        bench.run(
            _HELPERS
            + r"""
            zones -k 5
            write 0 0 5; write 1 0 $C; write 2 0 100; nvme zns finish-zone $DEV -s $(slba 2)
            write 3 0 7; nvme zns reset-zone $DEV -s $(slba 3)
            nvme zns open-zone $DEV -s $(slba 4); write 4 0 9
            nvme zns set-zone-desc $DEV -s $(slba 5) -d /dev/urandom
            nvme zns report-zones $DEV -e -s $(slba 5) -d 1 | tee /tmp/extended
            dd if=$DEV bs=4M count=6 iflag=direct status=none | sha256sum >/tmp/before"""
        )
        expected = {0: ("cl", 5), 1: ("fu", None), 2: ("fu", None), 3: ("em", 0), 4: ("cl", 9), 5: ("cl", 0)}
        for how in (peer.kill, peer.kill):
            how()
            peer.start()
            bench.run("controller", 60)
            text = bench.run(f"{_HELPERS}attached; sleep 1; blkzone report -c 6 $DEV")
            found = re.findall(r"wptr 0x(\w+).*zcond: ?\d+\((\w\w)\)", text)
            for zone, (state, blocks) in expected.items():
                pointer, shown = found[zone]
                expect(shown == state, f"zone {zone} is {shown}, not {state}")
                expect(blocks is None or int(pointer, 16) == blocks * 8, f"zone {zone}: pointer {pointer}")
            bench.run(
                _HELPERS
                + r"""
                attached
                dd if=$DEV bs=4M count=6 iflag=direct status=none | sha256sum | cmp - /tmp/before
                nvme zns report-zones $DEV -e -s $(slba 5) -d 1 | cmp - /tmp/extended"""
            )
        bench.run(
            _HELPERS
            + """
            attached; write 0 5 3; write 4 9 1
            [ $(pointer 0) = $(printf %06x 64) ] || die "pointer $(pointer 0)"; disconnect"""
        )


_ZONEFS = r"""
import os, struct, zlib
block = bytearray(4096)
struct.pack_into("<II64s16sQIII", block, 0, 0x5a4f4653, 0, b"zones", os.urandom(16), 0, 0, 0, 0o640)
# crc32 of the kernel: a seed of all ones, and no inversion at the end
struct.pack_into("<I", block, 4, zlib.crc32(bytes(block)) ^ 0xffffffff)
open("/tmp/super", "wb").write(block)
"""


@check(RAM, FILE, only_ours=True)
def zonefs(bench: Bench) -> None:
    """A file system on zones: each a file that is appended to, truncated, and read again after a remount."""
    if bench.kernel_version < (6, 10):
        raise Skipped("zonefs of 6.1 does not accept the place of an append, though it is the right one")
    with _target(bench):
        bench.run(
            _HELPERS
            + f"""
            modprobe zonefs 2>/dev/null || {{ echo "no zonefs"; exit 0; }}
            zones
            python3 -c '{_ZONEFS}'
            dd if=/tmp/super of=$DEV bs=4096 count=1 oflag=direct status=none"""
            + r"""
            mount -t zonefs -o explicit-open $DEV /mnt
            ls -l /mnt /mnt/seq | head; [ $(ls /mnt/seq | wc -l) = 63 ] || die "$(ls /mnt/seq | wc -l) files"
            for f in 0 1 2; do
              head -c 1048576 /dev/urandom >/tmp/part$f
              dd if=/tmp/part$f of=/mnt/seq/$f bs=64k oflag=direct conv=notrunc status=none
              dd if=/tmp/part$f of=/mnt/seq/$f bs=64k oflag=direct,append conv=notrunc status=none
              [ $(stat -c %s /mnt/seq/$f) = 2097152 ] || die "size $(stat -c %s /mnt/seq/$f)"
            done
            truncate -s 0 /mnt/seq/1; truncate -s 3145728 /mnt/seq/2
            umount /mnt; is 1 cl; is 2 em; is 3 fu
            mount -t zonefs $DEV /mnt
            cat /tmp/part0 /tmp/part0 | cmp - /mnt/seq/0; [ $(stat -c %s /mnt/seq/1) = 0 ]
            head -c 1048576 /mnt/seq/2 | cmp - /tmp/part2
            umount /mnt; disconnect""",
            120,
        )
