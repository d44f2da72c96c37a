"""Formats, sanitize, self-tests, LBA status, write protection and resets with a kernel's initiator and nvme-cli."""

from __future__ import annotations

from .bench import Bench, check
from .peers import Layout

RAM = Layout("tcp", "ramdisk", 512, 128)
FILE = Layout("mptcp", "file", 512, 128)
_REFUSED = (r"nvme.*", r"I/O error, dev nvme\dc?\d?n\d", r"critical (medium|target) error", r"Buffer I/O error")

_HELPERS = r"""
c() { echo /dev/$CTRL; }
refused() { local want=$1 out; shift; ! out=$("$@" 2>&1) || die "not refused: $*"
  grep -qi "$want" <<<"$out" || die "$*: $out"; }
until_is() { local want=$1 have; shift
  for _ in $(seq 100); do have=$("$@" 2>/dev/null || true); [ "$have" = "$want" ] && return; sleep 0.1; done
  die "$*: $have and not $want"; }
field() { local name=$1; shift; "$@" -o json | jq -r "$name"; }
dump() { dd if=$DEV bs=1M count=8 iflag=direct status=none; }
fill() { dd if=/dev/urandom of=$DEV bs=1M count=8 oflag=direct status=none; }
erased() { dump | cmp -n 8388608 - /dev/zero || die "data is left after $1"; }
sanitized() {  # sanitized ACTION [OPTIONS]: and wait for its end
  nvme sanitize $(c) -a "$@"
  for _ in $(seq 300); do
    progress=$(nvme sanitize-log $(c) -b | od -An -tu2 -N2 | tr -d ' ')
    [ $progress = 65535 ] && break; sleep 0.1
  done
  [ $progress = 65535 ] || die "sanitize stands at $progress"
  nvme sanitize-log $(c)
  outcome=$(($(nvme sanitize-log $(c) -b | od -An -tu2 -j2 -N2) & 7)); }
tested() {     # tested CODE: and print how it ended
  nvme device-self-test $(c) -n 1 -s $1 >&2
  for _ in $(seq 300); do
    [ $(($(nvme get-log $(c) -i 6 -l 564 -b | od -An -tu1 -N1) & 15)) = 0 ] && break; sleep 0.1
  done
  nvme self-test-log $(c) >&2
  nvme get-log $(c) -i 6 -l 564 -b | od -An -tu1 -j4 -N1 | tr -d ' '; }
"""


@check(RAM, FILE, quick=1, only_ours=True, allow=_REFUSED)
def media(bench: Bench) -> None:
    """Format there and back, sanitize, self-tests, marks, and what the logs say of them."""
    with bench.target():
        bench.run(
            _HELPERS
            + r"""
            connect
            nvme version; nvme id-ctrl $(c) -H | grep -iE -A4 'oacs|sanicap|fna|nwpc|dsto|edstt'
            fill
            nvme format $DEV --lbaf=1 --force
            until_is 4096 blockdev --getss $DEV
            until_is $((SIZE_MIB * 1048576)) blockdev --getsize64 $DEV
            [ $(field .flbas nvme id-ns $DEV) = 1 ] || die "FLBAS"
            erased format; BLOCK=4096; roundtrip $DEV 3000000 4; fill
            refused 'invalid.*format' nvme format $DEV --lbaf=5 --force
            nvme format $DEV --lbaf=0 --ses=1 --force
            until_is 512 blockdev --getss $DEV
            erased 'a secure format'; BLOCK=512; roundtrip $DEV 3000000 4

            fill; sanitized 2; [ $outcome = 1 ] || die "block erase ended as $outcome"; erased 'block erase'
            fill; sanitized 3 -n 2 -p 0xdeadbeef -i || sanitized 3 --owpass=2 --ovrpat=0xdeadbeef --oipbp
            [ $outcome = 1 ] || die "overwrite ended as $outcome"; erased overwrite
            refused 'invalid' nvme sanitize $(c) -a 4
            nvme sanitize $(c) -a 1

            [ $(tested 1) = 16 ] || die "the short self-test did not succeed"
            [ $(tested 2) = 32 ] || die "the extended self-test did not succeed"
            fill
            nvme write-uncor $DEV -s 100 -c 3
            [ $(tested 2) = 39 ] || die "the extended self-test did not fail"
            nvme device-self-test $(c) -n 1 -s 0xf
            nvme get-lba-status $DEV -n 1 --start-lba=0 --max-dw=255 --action=0x11 --range-len=0
            status=$(nvme admin-passthru $DEV -O 0x86 -n 1 --cdw12=15 --cdw13=0x11000000 -l 64 -r -b | od -An -tu4 -v)
            [ "$(echo $status | cut -d' ' -f1-6)" = "1 2 100 0 3 768" ] || die "LBA status: $status"
            nvme admin-passthru $DEV -O 0x86 -n 1 --cdw12=15 --cdw13=0x10000000 -l 64 -r >/dev/null
            nvme lba-status-log $(c)
            ! dd if=$DEV bs=512 skip=100 count=4 iflag=direct of=/dev/null 2>/dev/null || die "marked blocks are read"
            dd if=/dev/zero of=$DEV bs=512 seek=100 count=4 oflag=direct status=none
            dd if=$DEV bs=512 skip=100 count=4 iflag=direct status=none | cmp -n 2048 - /dev/zero
            disconnect""",
            240,
        )


@check(RAM, FILE, quick=1, only_ours=True, allow=_REFUSED)
def protection(bench: Bench) -> None:
    """Write protection and marks, through a restart where there is a file; a reset of the subsystem; properties."""
    with bench.target() as peer:
        bench.run(
            _HELPERS
            + r"""
            connect; fill; dump | sha256sum >/tmp/before
            nvme set-feature $DEV -f 0x84 -n 1 --value=1
            nvme get-feature $DEV -f 0x84 -n 1 -H
            until_is 1 blockdev --getro $DEV
            ! dd if=/dev/zero of=$DEV bs=4k count=1 oflag=direct 2>/dev/null || die "it was written"
            refused 'write.protect' nvme write-zeroes $DEV -s 0 -c 7
            refused 'write.protect' nvme format $DEV --lbaf=1 --force
            refused 'write.protect' nvme sanitize $(c) -a 2
            dump | sha256sum -c /tmp/before || [ "$(dump | sha256sum)" = "$(</tmp/before)" ] || die "other data"
            """
        )
        if bench.layout.backing == "file":
            peer.kill()
            peer.start()
            bench.run(
                _HELPERS
                + r"""
                attached; sleep 1
                until_is 1 blockdev --getro $DEV
                refused 'write.protect' nvme write-zeroes $DEV -s 0 -c 7
                """,
                90,
            )
        bench.run(
            _HELPERS
            + r"""
            attached
            nvme set-feature $DEV -f 0x84 -n 1 --value=0
            until_is 0 blockdev --getro $DEV
            nvme write-uncor $DEV -s 64 -c 0
            """
        )
        if bench.layout.backing == "file":
            peer.kill()
            peer.start()
        bench.run(
            _HELPERS
            + r"""
            attached; sleep 1
            refused 'unrecovered read error' nvme read $DEV -s 64 -c 0 -z 512 -d /tmp/x
            fill
            nvme show-regs $(c) -H
            nvme subsystem-reset $(c) || die "subsystem-reset"
            sleep 0.5; attached
            nvme show-regs $(c)
            for _ in $(seq 50); do dump >/dev/null 2>&1 && break; sleep 0.2; done
            roundtrip $DEV 3000000 1
            disconnect""",
            120,
        )
