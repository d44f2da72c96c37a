"""Features, properties, version, keep alive and resets, as nvme-cli and a kernel's initiator see them."""

from __future__ import annotations

from .bench import Bench, check
from .peers import Layout

RAM = Layout("tcp", "ramdisk", 512)
FILE = Layout("tcp", "file", 4096, 256, options=("--state", "{directory}/state"))
_NOISE = (r"nvme.*",)

_HELPERS = r"""
says() { local words=$1 out; shift; out=$("$@" 2>&1) && die "not refused: $*: $out"
  grep -qi "$words" <<<"$out" || die "$*: $out"; }
value() { nvme get-feature "$@" 2>&1 | sed -n 's/.*value:\(0x\)\?0*\([0-9a-f]*\).*/0x0\2/p' | head -1; }
want() { local have; have=$(value "${@:2}"); [ $((have)) = $(($1)) ] || die "get-feature ${*:2}: $have and not $1"; }
property() { nvme get-property $c --offset=$1 2>&1 | grep -o '[0-9a-f]*$' | tail -1 | sed 's/^/0x/'; }
data_bytes() { case $1 in 0x03|0x7d|0x7e|0x7f) echo 4096;; 0x0e) echo 8;; 0x16) echo 512;; 0x1f) echo 256;;
  0x81) echo 16;; *) echo 0;; esac; }
live() { [ "$(cat /sys/class/nvme/$CTRL/state)" = live ]; }
again() { for _ in $(seq 100); do sleep 0.1; live && return; done; die "the controller is not live again"; }
"""

_ALL_FEATURES = r"""
connect
c=/dev/$CTRL
nvme version; nvme fid-support-effects-log $c -H >/tmp/effects || die fid-support-effects-log
grep -c 'FID' /tmp/effects; nvme supported-log-pages $c; nvme id-ctrl $c -H
nvme fid-support-effects-log $c -o binary >/tmp/effects.bin 2>/dev/null || true
[ "$(stat -c %s /tmp/effects.bin)" -ge 1024 ] ||
  nvme get-log $c -i 0x12 -l 1024 -b >/tmp/effects.bin
supported() { [ $(($(od -An -tu4 -j $((4 * $1)) -N4 /tmp/effects.bin) & 1)) = 1 ]; }
scope() { echo $(($(od -An -tu4 -j $((4 * $1)) -N4 /tmp/effects.bin) >> 20)); }
count=0
for n in $(seq 1 33) $(seq 120 133) 192 255; do
  f=$(printf 0x%02x $n); l=$(data_bytes $f); x=0; [ $f = 0x81 ] && x=1
  for s in 0 1 2 3; do
    nsid=0; [ $(scope $n) = 1 ] && nsid=1
    case $s:$l in 3:*|*:0) length=;; *) length="-l $l";; esac
    if supported $n; then
      out=$(nvme get-feature $c -f $f -s $s -n $nsid --cdw11=$x $length 2>&1) || die "FID $f SEL $s: $out"
      count=$((count + 1))
    else
      says 'invalid.field' nvme get-feature $c -f $f -l 8
      break
    fi
  done
done
echo "$count values and capabilities told"
"""


@check(RAM, FILE, only_ours=True, allow=_NOISE)
def features(bench: Bench) -> None:
    """get-feature of all identifiers with every SEL, set-feature, and what is saved over a reset and a crash."""
    (bench.directory / "state").unlink(missing_ok=True)
    with bench.target() as peer:
        if peer.layout.backing == "ramdisk":
            bench.run(_HELPERS + _ALL_FEATURES, 300)
        else:
            bench.run("connect")
        bench.run(
            _HELPERS
            + r"""
            attached; c=/dev/$CTRL
            set_() { nvme set-feature $c "$@" >/dev/null || die "set-feature $*"; }
            set_ -f 1 -V 0x01020303 -s; want 0x01020303 $c -f 1; want 7 $c -f 1 -s 1; want 0x01020303 $c -f 1 -s 2
            set_ -f 2 -V 0x20 -s; set_ -f 4 -V 350; set_ -f 5 -n 1 -V 100 -s; set_ -f 0xa -V 1 -s; set_ -f 0x80 -V 5
            want 350 $c -f 4; want 343 $c -f 4 -s 1; want 100 $c -f 5 -n 1; want 5 $c -f 0x80
            if nvme get-feature $c -f 6 >/dev/null 2>&1; then
              set_ -f 6 -V 0 -s; want 0 $c -f 6; want 1 $c -f 6 -s 1
            fi
            says 'not.saveable' nvme set-feature $c -f 0xb -V 0x100 -s
            says 'not.namespace.specific' nvme set-feature $c -f 1 -n 1 -V 7
            says 'invalid.field' nvme set-feature $c -f 1 -V 8
            says 'invalid.field' nvme set-feature $c -f 8 -V 1
            [ $(($(value $c -f 7))) -gt 0 ] || die "no queues"

            printf '\x34\x12\0\0\0\x01\0\0' >/tmp/stamp
            set_ -f 0xe -d /tmp/stamp -l 8
            nvme get-feature $c -f 0xe -l 8 -b | od -An -tx1 | grep -q ' 02 00$' || die "timestamp's origin"
            head -c 256 /dev/zero >/tmp/label; printf 'a label' | dd of=/tmp/label conv=notrunc status=none
            set_ -f 0x1f -n 1 -s -d /tmp/label -l 256
            nvme get-feature $c -f 0x1f -n 1 -l 256 -b | cmp - /tmp/label
            says 'invalid.field' nvme set-feature $c -f 0x1f -n 1 -d /tmp/label -l 256
            head -c 4096 /dev/zero >/tmp/note; printf '\1\0\1\0\5\0nvme0' | dd of=/tmp/note conv=notrunc status=none
            for f in 0x7e 0x7f; do
              set_ -f $f -n $((f == 0x7f)) -d /tmp/note -l 4096
              nvme get-feature $c -f $f -n $((f == 0x7f)) -l 4096 -b | cmp - /tmp/note
            done
            set_ -f 0x7d -V 0x4000 -d /tmp/note -l 4096; set_ -f 0x7d -V 0x4000 -d /tmp/note -l 4096
            nvme get-feature $c -f 0x7d -l 4096 -b | head -c 1 | od -An -tu1 | grep -qw 2 || die "two elements"
            nvme get-feature $c -f 3 -n 1 -l 4096 -b >/tmp/ranges
            set_ -f 3 -n 1 -V 0 -s -d /tmp/ranges -l 4096

            nvme reset $c; again                              # over fabrics: a new controller
            want 0x01020303 $c -f 1; want 0x20 $c -f 2; want 1 $c -f 0xa; want 100 $c -f 5 -n 1; want 5 $c -f 0x80
            want 343 $c -f 4
            nvme get-feature $c -f 0x7e -l 4096 -b | cmp -n 4096 - /dev/zero || die "metadata outlived a reset"
            nvme get-feature $c -f 0x1f -n 1 -l 256 -b | cmp - /tmp/label
            disconnect""",
            120,
        )
        if peer.layout.backing == "file":
            peer.kill()
            peer.start()
            bench.run(
                _HELPERS
                + r"""
                connect; c=/dev/$CTRL
                want 0x01020303 $c -f 1; want 0x20 $c -f 2; want 1 $c -f 0xa; want 100 $c -f 5 -n 1; want 5 $c -f 0x80
                want 0 $c -f 6
                nvme get-feature $c -f 0x1f -n 1 -l 256 -b | cmp - /tmp/label
                disconnect"""
            )


@check(RAM, quick=1, only_ours=True, allow=_NOISE)
def properties(bench: Bench) -> None:
    """show-regs, get- and set-property, keep alive, the controller's and the subsystem's reset, disconnect."""
    with bench.target():
        bench.run(
            _HELPERS
            + r"""
            connect --keep-alive-tmo=3; c=/dev/$CTRL
            nvme show-regs $c -H
            nvme show-regs $c | grep -ic '^version.*20100' || die "$(nvme show-regs $c)"
            [ $(($(property 8))) = $((0x20100)) ] || die "VS $(nvme get-property $c --offset=8)"
            for o in 0 0x14 0x1c 0x20 0x68; do nvme get-property $c --offset=$o -H; done
            says 'invalid.field' nvme get-property $c --offset=0x28
            says 'invalid.field' nvme set-property $c --offset=8 --value=1
            says 'invalid.field' nvme set-property $c --offset=0x14 --value=0x4600e1     # CC.MPS while enabled
            nvme set-property $c --offset=0x20 --value=1                                 # NSSR: not the word
            [ $(($(property 0x1c))) = 1 ] || die "CSTS $(property 0x1c)"
            want 3000 $c -f 0xf
            sleep 8; live || die "cut off in spite of keep alive"
            nvme set-feature $c -f 0xf -V 2999; want 3000 $c -f 0xf

            nvme reset $c; again
            nvme subsystem-reset $c || die subsystem-reset
            sleep 0.3; again; attached
            [ $(($(property 0x1c))) = $((0x11)) ] || die "CSTS $(property 0x1c) after a subsystem reset"
            nvme set-property $c --offset=0x1c --value=0x10
            [ $(($(property 0x1c))) = 1 ] || die "CSTS $(property 0x1c): NSSRO was cleared"
            roundtrip $DEV 1000000 1
            disconnect""",
            180,
        )
