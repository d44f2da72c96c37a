"""Namespace management with a kernel's initiator: create-ns, attach-ns, detach-ns, delete-ns, and who sees what."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .bench import Bench, check
from .peers import Layout

POOL = Path(tempfile.gettempdir()) / "nvmeof-interop-pool"
MEMORY = Layout("tcp", "ramdisk", 512, 64, options=("--capacity", "256M"))
DIRECTORY = Layout("mptcp", "ramdisk", 4096, 64, options=("--capacity", "256M", "--pool", str(POOL)))
_KNOWN = (r"nvme.*", r"I/O error, dev nvme\dc?\d?n\d", r"Buffer I/O error", r"block nvme\dn\d: no usable path")

_HELPERS = r"""
modprobe -a nvme-tcp ext4
refused() { local want=$1 out; shift; out=$("$@" 2>&1) && die "not refused: $*"
  grep -qi "$want" <<<"$out" || die "$*: $out"; }
device() { local b; for b in /sys/block/nvme*n*; do                     # device NSID
  case ${b##*/} in *c[0-9]*n*) continue ;; esac
  [ "$(cat $b/nsid 2>/dev/null)" = $1 ] && { echo /dev/${b##*/}; return; }; done; return 1; }
appears() { local d; for _ in $(seq 100); do d=$(device $1) && [ -b "$d" ] &&
  [ "$(blockdev --getsize64 $d 2>/dev/null || echo 0)" -gt 0 ] && { echo $d; return; }; sleep 0.05; done
  die "namespace $1 does not appear"; }
goes() { for _ in $(seq 100); do device $1 >/dev/null || return 0; sleep 0.05; done; die "namespace $1 does not go"; }
list() { nvme list-ns "$@" | sed -n 's/.*:0x//p' | tr '\n' ' '; }
lists() { local want=$1; shift; [ "$(list "$@")" = "$want" ] || die "list-ns $*: $(list "$@") and not $want"; }
make() { local want=$1 out blocks=$2; shift 2                           # make NSID BLOCKS [OPTIONS]
  out=$(nvme create-ns /dev/$CTRL --nsze=$blocks --ncap=$blocks "$@") || die "create-ns $blocks $*: $out"
  grep -q "nsid:$want$" <<<"$out" || die "create-ns $blocks $*: $out and not $want"; }
unallocated() { nvme id-ctrl /dev/$CTRL -o json | jq .unvmcap; }
cntlid() { cat /sys/class/nvme/$1/cntlid; }
"""


@check(MEMORY, quick=1, only_ours=True, allow=_KNOWN)
def namespaces(bench: Bench) -> None:
    """Create, attach, use, detach and delete; devices come and go by themselves; two hosts; what Identify tells."""
    with bench.target():
        bench.run(
            _HELPERS
            + r"""
            connect
            id=$(cntlid $CTRL)
            [ $(($(nvme id-ctrl /dev/$CTRL -o json | jq .oacs) & 8)) = 8 ] || die "OACS"
            [ "$(nvme id-ctrl /dev/$CTRL -o json | jq .tnvmcap)" = $((320 << 20)) ] || die "TNVMCAP"
            [ "$(unallocated)" = $((256 << 20)) ] || die "UNVMCAP"
            lists '1 ' /dev/$CTRL; lists '1 ' /dev/$CTRL -a

            # one of 512-byte blocks: made, shown, attached, used
            make 2 65536 --block-size=512 --nmic=1
            lists '1 ' /dev/$CTRL; lists '1 2 ' /dev/$CTRL -a
            [ "$(unallocated)" = $((224 << 20)) ] || die "UNVMCAP after create-ns: $(unallocated)"
            [ -z "$(device 2)" ] || die "a device before it is attached"
            nvme id-ns /dev/$CTRL -n 2 --force -o json >/tmp/id
            jq -e '.nsze == 65536 and .endgid == 1 and .nmic == 1' /tmp/id || die id-ns
            nvme attach-ns /dev/$CTRL -n 2 -c $id
            dev=$(appears 2); lists '1 2 ' /dev/$CTRL
            [ "$(blockdev --getss $dev)" = 512 ] && [ "$(blockdev --getsize64 $dev)" = $((32 << 20)) ] || die size
            [ "$(cat /sys/block/${dev##*/}/queue/write_cache)" = "write through" ] || die "a write cache in memory"
            mkfs.ext4 -q -F $dev; mount $dev /mnt; cp -r /usr/lib/python3*/json /mnt/
            (cd /mnt && find . -type f -exec sha256sum {} +) >/tmp/sums; umount /mnt
            nvme list-ctrl /dev/$CTRL -n 2 | grep -q ":0x\?$(printf %x $id)$" || nvme list-ctrl /dev/$CTRL -n 2
            nvme ns-descs $dev; nvme id-ns $dev

            # detached, and attached again: the data is there
            nvme detach-ns /dev/$CTRL -n 2 -c $id; goes 2; lists '1 ' /dev/$CTRL; lists '1 2 ' /dev/$CTRL -a
            nvme attach-ns /dev/$CTRL -n 2 -c $id; dev=$(appears 2)
            mount $dev /mnt; (cd /mnt && sha256sum --quiet -c /tmp/sums); umount /mnt

            # one of 4 KiB blocks
            make 3 4096 --block-size=4096 --nmic=1
            nvme attach-ns /dev/$CTRL -n 3 -c $id; dev=$(appears 3)
            [ "$(blockdev --getss $dev)" = 4096 ] || die "block size"
            roundtrip $dev 4194304

            # refusals
            refused 'already attached' nvme attach-ns /dev/$CTRL -n 3 -c $id
            refused 'controller list' nvme attach-ns /dev/$CTRL -n 2 -c 0x77
            refused 'capacity' nvme create-ns /dev/$CTRL --nsze=9999999 --ncap=9999999 --block-size=512
            refused 'thin' nvme create-ns /dev/$CTRL --nsze=64 --ncap=32 --block-size=512
            refused 'denied' nvme delete-ns /dev/$CTRL -n 1
            refused 'field' nvme delete-ns /dev/$CTRL -n 9
            refused 'format' nvme create-ns /dev/$CTRL --nsze=64 --ncap=64 --flbas=5

            # another host: what is attached to its controller appears there by itself
            nvme connect -t tcp -a $ADDR -s $PORT -n $NQN -q nqn.2026-01.org.example:other \
              -I 11111111-2222-3333-4444-555555555555
            for _ in $(seq 100); do other=$(ls /sys/class/nvme | grep -v "^$CTRL$" | grep '^nvme' | head -1)
              [ -n "$other" ] && [ "$(cat /sys/class/nvme/$other/state)" = live ] && break; sleep 0.05; done
            second=$(cntlid $other); lists '1 ' /dev/$other; lists '1 2 3 ' /dev/$other -a
            make 4 4096 --block-size=4096 --nmic=0
            refused 'private' nvme attach-ns /dev/$CTRL -n 4 -c $id,$second
            nvme attach-ns /dev/$CTRL -n 4 -c $second; appears 4; lists '1 4 ' /dev/$other; lists '1 2 3 ' /dev/$CTRL
            nvme list-ctrl /dev/$CTRL; nvme list-ctrl /dev/$CTRL -n 4
            nvme changed-ns-list-log /dev/$other || true
            nvme detach-ns /dev/$CTRL -n 4 -c $second; goes 4
            nvme attach-ns /dev/$CTRL -n 4 -c $second; appears 4
            nvme delete-ns /dev/$CTRL -n 4; goes 4; lists '1 ' /dev/$other; lists '1 2 3 ' /dev/$other -a
            nvme attach-ns /dev/$CTRL -n 3 -c $second; lists '1 3 ' /dev/$other
            nvme disconnect -d $other

            # what is attached stays so for the host that comes back
            disconnect; connect; lists '1 2 3 ' /dev/$CTRL; appears 3; appears 2
            refused 'denied' nvme delete-ns /dev/$CTRL -n 0xffffffff
            nvme delete-ns /dev/$CTRL -n 2; goes 2
            nvme delete-ns /dev/$CTRL -n 3; goes 3
            lists '1 ' /dev/$CTRL -a; [ "$(unallocated)" = $((256 << 20)) ] || die "UNVMCAP at the end"
            disconnect""",
            180,
        )


@check(MEMORY, only_ours=True, allow=_KNOWN)
def identify_variants(bench: Bench) -> None:
    """Every form of Identify that the guest's nvme-cli knows and that applies here."""
    with bench.target():
        bench.run(
            _HELPERS
            + r"""
            connect; c=/dev/$CTRL
            nvme create-ns $c --nsze=4096 --ncap=4096 --block-size=4096
            # has NAME: whether this nvme-cli knows the command
            nvme help >/tmp/help 2>&1 || true
            has() { grep -q "^  $1 " /tmp/help; }
            must() { local name=$1; shift; has $name || { echo "no nvme $name here"; return 0; }
              nvme $name "$@" || die "nvme $name $*"; }
            must id-ns-granularity $c
            must list-endgrp $c
            must nvm-id-ctrl $c
            must nvm-id-ns $DEV
            must nvm-id-ns-lba-format $c -i 1
            must id-ns-lba-format $c -i 1
            must cmdset-ind-id-ns $DEV
            must cmdset-ind-id-ns $c -n 1
            must ns-descs $DEV
            must id-iocs $c
            must list-ns $c --csi=0
            must list-ns $c --csi=0 -a
            must list-ctrl $c
            must list-ctrl $c -n 1
            must id-ns $c -n 0xffffffff
            must id-ns $c -n 2 --force
            must changed-alloc-ns-list-log $c
            refused 'field' nvme id-nvmset $c
            must id-uuid $c
            refused 'field' nvme id-domain $c
            # what no command of nvme-cli asks for: CNS 1Fh, 1Bh, 1Ah, and their refusals
            ask() { nvme admin-passthru $c --opcode=6 --data-len=4096 --read "$@" >/tmp/out 2>&1 && return
              tail -3 /tmp/out; return 1; }
            ask -n 2 --cdw10=0x1f; ask -n 2 --cdw10=0x1b; ask -n 0 --cdw10=0x1a; ask -n 2 --cdw10=0x11
            ! ask -n 1 --cdw10=0x1b --cdw11=0x04000000 || die "a structure of command set 4"
            ! ask -n 0xffffffff --cdw10=0x12 || die "controllers attached to all"
            ! ask --cdw10=0x9 --cdw11=9 || die "format 9"
            # a zoned one, made by the host
            make 3 $(((128 << 20) / 4096)) --block-size=4096 --csi=2 --nmic=1
            nvme attach-ns $c -n 3 -c $(cntlid $CTRL); dev=$(appears 3); nvme ns-rescan $c
            [ "$(cat /sys/block/${dev##*/}/queue/zoned)" = host-managed ] || die "not zoned"
            blkzone report $dev | head -3; lists '3 ' $c --csi=2; lists '1 ' $c --csi=0
            dd if=/dev/urandom of=$dev bs=64k count=16 oflag=direct status=none
            refused 'field' nvme create-ns $c --nsze=1000 --ncap=1000 --block-size=4096 --csi=2
            nvme delete-ns $c -n 3; goes 3
            disconnect""",
            120,
        )


@check(DIRECTORY, only_ours=True, allow=_KNOWN)
def namespaces_kept(bench: Bench) -> None:
    """Created namespaces in a directory: the target is killed and comes back, and so do they, with their data."""
    shutil.rmtree(POOL, ignore_errors=True)
    try:
        with bench.target() as peer:
            bench.run(
                _HELPERS
                + r"""
                connect; id=$(cntlid $CTRL)
                for n in 2 3; do
                  make $n 8192 --block-size=4096 --nmic=1
                done
                nvme attach-ns /dev/$CTRL -n 2 -c $id; dev=$(appears 2)
                [ "$(cat /sys/block/${dev##*/}/queue/write_cache)" = "write back" ] || die "no write cache in a file"
                head -c 8388608 /dev/urandom >/tmp/data; dd if=/tmp/data of=$dev bs=1M oflag=direct status=none
                nvme flush $dev; cat /sys/block/${dev##*/}/uuid >/tmp/uuid; disconnect"""
            )
            peer.kill()
            peer.start()
            bench.run(
                _HELPERS
                + r"""
                connect; lists '1 2 ' /dev/$CTRL; lists '1 2 3 ' /dev/$CTRL -a
                dev=$(appears 2); cmp /tmp/uuid /sys/block/${dev##*/}/uuid || die "another UUID"
                dd if=$dev bs=1M count=8 iflag=direct status=none | cmp - /tmp/data || die "other data"
                nvme delete-ns /dev/$CTRL -n 2; goes 2; nvme delete-ns /dev/$CTRL -n 3
                [ "$(unallocated)" = $((256 << 20)) ] || die "UNVMCAP"
                disconnect"""
            )
    finally:
        shutil.rmtree(POOL, ignore_errors=True)
