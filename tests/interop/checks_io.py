"""I/O commands in their details with a kernel's initiator, nvme-cli and passthrough ioctls.

Linux sends no fused commands, not even through its ioctls: those are left to the model in tests/target.
"""

from __future__ import annotations

import json

from .bench import Bench, check
from .checks import expect
from .peers import Layout

RAM = Layout("tcp", "ramdisk", 512, 64, options=("--ramdisk", "32M"))
FILE_4K = Layout("mptcp", "file", 4096, 64, options=("--ramdisk", "32M"))
_REFUSED = (r"nvme.*", r"I/O error, dev nvme\dc?\d?n\d", r"critical (medium|target) error")

_HELPERS = r"""
io() { nvme io-passthru $DEV -n 1 "$@" 2>&1; }     # one command; prints status and result
good() { local out; out=$(io "$@") && [[ $out == *Success* ]] || die "$*: $out"; }
refused() { local want=$1 out; shift; ! out=$(io "$@") && grep -qi "$want" <<<"$out" || die "$*: $out"; }
result() { local want=$1 out; shift; out=$(io "$@") && [[ $out == *"result: $want"* ]] || die "$*: $out"; }
le() { printf "%0$((2 * $2))x" $1 | fold -w2 | tac | tr -d '\n' | sed 's/../\\x&/g'; }  # number, bytes
range() { printf "$(le $1 4)$(le 0 4)$(le $2 8)$(le $(($3 - 1)) 2)$(le 0 4)$(le $4 2)$(le 0 8)"; }
first() { dd if=$1 bs=$BLOCK skip=$2 count=$3 iflag=direct status=none; }
n=$((8192 / BLOCK)); c=$((n - 1)); DEV=$(nvme_dev "$NQN" 1) OTHER=$(nvme_dev "$NQN" 2)
"""


@check(RAM, FILE_4K, quick=1, only_ours=True, allow=_REFUSED)
def io_details(bench: Bench) -> None:
    """Hints and options of the commands of the NVM Command Set, Copy across namespaces, Cancel, whole namespaces."""
    with bench.target():
        bench.run(
            "connect -i 1"
            + _HELPERS
            + r"""
            nvme version; nvme id-ctrl /dev/$CTRL -H | grep -iE -A14 '^(oncs|fuses|ocfs|awun|acwu)'
            head -c 8192 /dev/urandom >/tmp/a; head -c 8192 /dev/zero >/tmp/z
            # Hints, and what is of no effect without protection information
            nvme write $DEV -s 0 -c $c -z 8192 -d /tmp/a -f -l
            nvme read $DEV -s 0 -c $c -z 8192 -d /tmp/b -f -l; cmp /tmp/a /tmp/b || die "read with FUA"
            nvme compare $DEV -s 0 -c $c -z 8192 -d /tmp/a -f
            nvme verify $DEV -s 0 -c $c -f
            good -O 2 -l 8192 -r --cdw10=0 --cdw12=$((c | 0xf << 26 | 1 << 24))
            refused 'Invalid Field' -O 0x0c --cdw12=$((1 << 29))
            refused 'Invalid Field' -O 1 -l $BLOCK -w -i /tmp/a --cdw12=$((1 << 20))
            refused 'Invalid Field' -O 8 --cdw12=$((1 << 16))
            # Write Zeroes, deallocating and not, and of a whole namespace
            nvme write-zeroes $DEV -s 0 -c 0; cmp -n $BLOCK <(first $DEV 0 1) /tmp/z || die "write-zeroes"
            nvme write-zeroes $DEV -s 1 -c $((c - 1)) -d; cmp -n 8192 <(first $DEV 0 $n) /tmp/z || die "deac"
            # Dataset Management: ranges, attributes
            nvme write $DEV -s 0 -c $c -z 8192 -d /tmp/a
            nvme dsm $DEV -n 1 --idr --idw --ctx-attrs=1,2 --blocks=1,1 --slbs=0,1
            cmp -n 8192 <(first $DEV 0 $n) /tmp/a || die "hints change data"
            nvme dsm $DEV -n 1 --ad --ctx-attrs=0,0 --blocks=1,1 --slbs=0,1
            cmp -n $((2 * BLOCK)) <(first $DEV 0 2) /tmp/z || die "deallocate"
            # Cancel finds nothing, on its own queue only; so does Abort. Linux gives no command this CID: its low 12
            # bits are a tag below the size of the queue, and Cancel itself could have a smaller one
            result 0x00000000 -O 0x18 --cdw10=$((1 | 0xffff << 16)) --cdw11=1
            result 0x00000000 -O 0x18 --cdw10=$((1 | 0xffe << 16))
            refused 'Invalid Field' -O 0x18 --cdw10=$((2 | 0xffe << 16))
            refused 'Invalid Field' -O 0x18 --cdw10=$((1 | 0xffe << 16)) --cdw11=1
            out=$(nvme admin-passthru /dev/$CTRL -O 8 --cdw10=$((1 | 0xffe << 16)) 2>&1)
            [[ $out == *"result: 0x00000001"* ]] || die "abort: $out"
            """,
            120,
        )
        bench.run(
            "attached"
            + _HELPERS
            + r"""
            # Copy: overlapping in format 0h, across namespaces in format 2h once that is enabled
            nvme write $DEV -s 0 -c $c -z 8192 -d /tmp/a
            nvme copy $DEV --sdlba=1 --slbs=0 --blocks=$c
            cmp -n 8192 <(first $DEV 1 $n) /tmp/a || die "copy that overlaps"
            range 1 0 1 0 >/tmp/r
            refused 'Invalid Field' -O 0x19 -l 32 -w -i /tmp/r --cdw10=100 --cdw12=0x200
            head -c 512 /dev/zero >/tmp/h; printf '\x04' | dd of=/tmp/h bs=1 seek=4 conv=notrunc status=none
            # Newer kernels keep Host Behavior Support to themselves, and do not enable it
            if nvme admin-passthru /dev/$CTRL -O 9 --cdw10=0x16 -l 512 -w -i /tmp/h; then
              nvme write $OTHER -s 0 -c 0 -z $BLOCK -d /tmp/a
              (range 2 0 1 0x8000; range 1 1 1 0) >/tmp/r
              good -O 0x19 -l 64 -w -i /tmp/r --cdw10=200 --cdw12=0x201
              cmp -n $BLOCK <(first $DEV 200 1) /tmp/a && cmp -n $BLOCK <(first $DEV 201 1) /tmp/a || die "copy across"
              range 1 99 2 0 >/tmp/r; refused '187' -O 0x19 -l 32 -w -i /tmp/r --cdw10=100 --cdw12=0x200
              range 9 0 1 0 >/tmp/r; refused 'Invalid Field' -O 0x19 -l 32 -w -i /tmp/r --cdw10=100 --cdw12=0x200
              range 0 0 1 0 >/tmp/r; refused 'Invalid Namespace' -O 0x19 -l 32 -w -i /tmp/r --cdw10=100 --cdw12=0x200
              echo "copied across namespaces"
            fi
            # A whole namespace
            result 0x00000001 -O 8 --cdw12=$((1 << 25 | 1 << 23)) --cdw11=0xffff
            blockdev --flushbufs $DEV; cmp -n 16777216 $DEV /dev/zero || die "NSZ left something"
            refused 'Invalid Field' -O 8 --cdw12=$((1 << 23))
            """,
            120,
        )
        controller = json.loads(bench.run("attached; nvme id-ctrl /dev/$CTRL -o json"))
        namespace = json.loads(bench.run("attached; nvme id-ns $DEV -o json"))
        expect(controller["fuses"] == 1 and controller["ocfs"] == 0b101, f"FUSES, CDFS: {controller}")
        expect(controller["oncs"] & 0x1700 == 0x1700, f"ONCS {controller['oncs']:#x}")
        expect(
            (controller["awun"], controller["awupf"], controller["acwu"]) == (7, 0, 7), f"atomic units: {controller}"
        )
        units = 32768 // bench.layout.block_bytes - 1
        expect(namespace["nsfeat"] & 2 and namespace["nawun"] == namespace["nacwu"] == units, f"NAWUN: {namespace}")
        bench.run("disconnect")
