"""The checks with a kernel's initiator: actions of an administrator, and their required results.

Each is given a :class:`~tests.interop.bench.Bench`. The scripts' functions are in guest.sh.
"""

from __future__ import annotations

import json
import time

from .bench import Bench, CheckFailed, check
from .peers import Layout

TCP_RAM = Layout("tcp", "ramdisk", 512)
MPTCP_RAM = Layout("mptcp", "ramdisk", 512)
TCP_FILE = Layout("tcp", "file", 512)
MPTCP_FILE_4K = Layout("mptcp", "file", 4096)
MPTCP_RAM_4K = Layout("mptcp", "ramdisk", 4096)
TCP_FILE_4K = Layout("tcp", "file", 4096)


def expect(condition: object, message: str) -> None:
    """Fail the check unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


@check(TCP_RAM, MPTCP_RAM, quick=1)
def discover(bench: Bench) -> None:
    """`nvme discover` lists the subsystem with the port that was asked."""
    with bench.target() as peer:
        bench.run("modprobe nvme-tcp; nvme discover -t tcp -a $ADDR -s $PORT")
        text = bench.run('nvme discover -t tcp -a "$ADDR" -s "$PORT" -o json 2>/dev/null')
        records = json.loads(text[text.index("{") :])["records"]
        ours = [r for r in records if r["subnqn"] == peer.nqn]
        expect(ours, f"{peer.nqn} is not among {records}")
        expect(any(r["trsvcid"].strip() == str(peer.port) for r in ours), f"another port than {peer.port}: {ours}")
        expect(all(r["subtype"] == "nvme subsystem" for r in ours), f"subtype: {ours}")
        bench.run("! ls /sys/class/nvme/nvme* 2>/dev/null")


@check(TCP_RAM, MPTCP_RAM, TCP_FILE, MPTCP_FILE_4K, quick=1)
def connect(bench: Bench) -> None:
    """Plain connect: the namespace appears with its size and block size, data comes back, disconnect."""
    with bench.target():
        bench.run("""
            connect
            [ "$(blockdev --getsize64 $DEV)" = $((SIZE_MIB * 1048576)) ] || die "size $(blockdev --getsize64 $DEV)"
            [ "$(blockdev --getss $DEV)" = $BLOCK ] || die "block size $(blockdev --getss $DEV)"
            roundtrip $DEV 4096 1
            roundtrip $DEV 3000000 $((SIZE_MIB - 4))
            disconnect""")


@check(TCP_RAM, MPTCP_FILE_4K)
def digests(bench: Bench) -> None:
    """Header and data digests, and each of them alone."""
    with bench.target():
        for options in ("-g -G", "-g", "-G"):
            bench.run(f"""
                connect {options}
                roundtrip $DEV 4096 1
                roundtrip $DEV 5000000 4
                disconnect""")


@check(TCP_RAM, MPTCP_RAM)
def queues(bench: Bench) -> None:
    """Several I/O queues: default, write and poll queues; each carries I/O."""
    with bench.target():
        bench.run("""
            connect -i 4 -W 2 -P 1
            least() { [ $1 -lt $2 ] && echo $1 || echo $2; }
            cpus=$(nproc); want=$((1 + $(least $cpus 4) + $(least $cpus 2) + 1))
            have=$(cat /sys/class/nvme/$CTRL/queue_count); echo "queues: $have"
            [ $have = $want ] || die "$have queues instead of $want"
            fio --name=x --filename=$DEV --rw=randrw --bs=4k --size=16m --iodepth=8 --ioengine=libaio --direct=1 \
              --numjobs=3 --group_reporting --output-format=terse >/dev/null
            fio --name=poll --filename=$DEV --rw=randread --bs=4k --size=4m --ioengine=pvsync2 --hipri \
              --direct=1 --output-format=terse >/dev/null
            roundtrip $DEV 2000000 32
            disconnect""")


@check(TCP_RAM)
def small_queue(bench: Bench) -> None:
    """16 entries under a load that wants more, so that the queue is always full and its head and tail wrap."""
    with bench.target():
        bench.run("""
            connect -Q 16
            [ $(cat /sys/class/nvme/$CTRL/sqsize) = 15 ] || die "sqsize $(cat /sys/class/nvme/$CTRL/sqsize)"
            fio --name=x --filename=$DEV --rw=randrw --bs=4k --size=16m --iodepth=64 --ioengine=libaio --direct=1 \
              --numjobs=2 --group_reporting --output-format=terse >/dev/null
            verify $DEV 8
            disconnect""")


@check(TCP_RAM, MPTCP_FILE_4K)
def no_flow_control(bench: Bench) -> None:
    """`--disable-sqflow`: no SQHD bookkeeping, so SUCCESS may stand in for a completion."""
    with bench.target():
        bench.run("""
            connect --disable-sqflow
            roundtrip $DEV 4096 1
            verify $DEV 16
            disconnect
            connect --disable-sqflow -g -G -Q 32
            verify $DEV 8
            disconnect""")


@check(TCP_RAM, MPTCP_FILE_4K, quick=1)
def questions(bench: Bench) -> None:
    """All that administrators ask of a controller answers, and says what is true."""
    with bench.target() as peer:
        bench.run(
            """
            connect
            c=/dev/$CTRL; set -x
            nvme list -v; nvme list -o json >/dev/null; nvme list-subsys
            nvme id-ctrl $c -H; nvme id-ns $DEV -H; nvme ns-descs $DEV; nvme list-ns $c; nvme show-regs $c || true
            nvme smart-log $c; nvme error-log $c; nvme effects-log $c
            for f in 7 0xb 0xf; do nvme get-feature $c -f $f -H; done
            if [ $(($(nvme id-ctrl $c -o json | jq .vwc) & 1)) = 1 ]; then nvme get-feature $c -f 6 -H
            else ! nvme get-feature $c -f 6 || die "a volatile write cache that Identify denies"; fi
            if [ $(($(nvme id-ctrl $c -o json | jq .cmic) & 8)) != 0 ]; then nvme ana-log $c; fi
            nvme get-ns-id $DEV; nvme flush $DEV""",
            180,
        )
        controller = json.loads(bench.run("attached; nvme id-ctrl /dev/$CTRL -o json"))
        namespace = json.loads(bench.run("attached; nvme id-ns $DEV -o json"))
        smart = json.loads(bench.run("attached; nvme smart-log /dev/$CTRL -o json"))
        expect(controller["subnqn"] == peer.nqn, f"SUBNQN {controller['subnqn']}")
        expect(controller["sn"].strip() and controller["mn"].strip() and controller["fr"].strip(), "empty SN, MN or FR")
        expect(controller["ioccsz"] >= 4 and controller["iorcsz"] == 1, "IOCCSZ, IORCSZ")
        used = namespace["lbafs"][namespace["flbas"] & 0xF]
        expect(1 << used["ds"] == peer.layout.block_bytes, f"LBADS {used}")
        expect(namespace["nsze"] << used["ds"] == peer.layout.size_mib << 20, f"NSZE {namespace['nsze']}")
        expect(smart["critical_warning"] == 0, f"critical warning {smart['critical_warning']}")
        bench.run("disconnect")


@check(TCP_RAM, MPTCP_FILE_4K, quick=1)
def ext4(bench: Bench) -> None:
    """A file system filled, unmounted, checked, and compared after a reconnect."""
    with bench.target():
        bench.note = next(line for line in bench.run("filesystem ext4", 240).splitlines() if "compared" in line)


@check(Layout("tcp", "file", 512, 320), Layout("mptcp", "ramdisk", 4096, 320))  # mkfs.xfs wants 300 MiB
def xfs(bench: Bench) -> None:
    """The same with XFS, with digests."""
    with bench.target():
        bench.run("filesystem xfs -g -G", 240)


@check(TCP_RAM, MPTCP_RAM_4K, TCP_FILE_4K, MPTCP_FILE_4K, quick=1)
def fio_verify(bench: Bench) -> None:
    """Mixed sizes from one block to 1 MiB, 32 deep, crc32c over all."""
    with bench.target():
        bench.note = bench.run("connect; verify $DEV 64; disconnect", 240).splitlines()[-2]


@check(TCP_FILE)
def fio_verify_digests(bench: Bench) -> None:
    """The same under header and data digests, on two jobs at once."""
    with bench.target():
        bench.run("connect -g -G; verify $DEV 32 --numjobs=2 --offset_increment=64m; disconnect", 240)


@check(TCP_RAM, MPTCP_FILE_4K)
def discard(bench: Bench) -> None:
    """blkdiscard, its zeroing form and hole punching act on their range only, and give space back."""
    with bench.target() as peer:
        bench.run("""
            connect
            [ $(cat /sys/block/${DEV##*/}/queue/discard_max_bytes) -gt 0 ] || die "no discard"
            dd if=/dev/urandom of=$DEV bs=1M count=64 oflag=direct status=none
            dd if=$DEV bs=1M count=64 iflag=direct of=/tmp/before status=none""")
        before = peer.allocated_bytes()
        bench.run("""
            attached
            blkdiscard -o 8M -l 8M $DEV
            blkdiscard -z -o 20M -l 8M $DEV
            fallocate -p -o $((32 * 1048576)) -l $((8 * 1048576)) $DEV
            fallocate -z -o $((44 * 1048576)) -l 65536 $DEV
            blkdiscard -o $((48 * 1048576)) -l $BLOCK $DEV
            sync $DEV; blockdev --flushbufs $DEV
            is_zero $DEV 20 8 || die "blkdiscard -z"
            is_zero $DEV 32 8 || die "fallocate -p"
            if [ $(($(nvme id-ns $DEV -o json | jq .dlfeat) & 7)) = 1 ]; then
              is_zero $DEV 8 8 || die "DLFEAT promises zeroes after a deallocate"
            fi
            dd if=$DEV bs=1M count=64 iflag=direct of=/tmp/after status=none
            same() { cmp -n $(($2 * 1048576)) -i $(($1 * 1048576)) /tmp/before /tmp/after || die "$1..$2 MiB changed"; }
            same 0 8; same 16 4; same 28 4; same 40 4; same 45 3; same 49 15
            cmp -n $((1048576 - BLOCK)) -i $((48 * 1048576 + BLOCK)) /tmp/before /tmp/after || die "a neighbour changed"
            disconnect""")
        after = peer.allocated_bytes()
        if before is not None and after is not None:
            bench.say(f"allocated: {before} bytes before, {after} after")
            # Hole punching becomes Write Zeroes, in which Linux 6.1 does not set DEAC yet.
            least = 15 << 20 if bench.kernel_version >= (6, 2) else 7 << 20
            expect(before - after >= least, f"the file shrank by {before - after} bytes only")


@check(TCP_RAM, MPTCP_FILE_4K)
def io_commands(bench: Bench) -> None:
    """nvme compare, verify, write-uncor and copy do what they say, and fail with the right status."""
    with bench.target():
        bench.run("""
            connect
            refused() { local want=$1 out; shift; ! out=$("$@" 2>&1) && [[ $out == *"$want"* ]] || die "$*: $out"; }
            n=$((8192 / BLOCK)); c=$((n - 1))
            head -c 8192 /dev/urandom >/tmp/a; head -c 8192 /dev/zero >/tmp/z
            nvme write $DEV -s 0 -c $c -z 8192 -d /tmp/a
            nvme compare $DEV -s 0 -c $c -z 8192 -d /tmp/a
            refused 'Compare Failure' nvme compare $DEV -s 0 -c $c -z 8192 -d /tmp/z
            nvme verify $DEV -s 0 -c $c
            nvme write-uncor $DEV -s $n -c $c
            refused 'Unrecovered Read Error' nvme read $DEV -s $n -c 0 -z $BLOCK -d /tmp/x
            refused 'Unrecovered Read Error' nvme verify $DEV -s $n -c $c
            nvme write $DEV -s $n -c $c -z 8192 -d /tmp/z
            nvme verify $DEV -s $n -c $c
            nvme copy $DEV --sdlba=$((8 * n)) --slbs=0 --blocks=$c
            nvme read $DEV -s $((8 * n)) -c $c -z 8192 -d /tmp/b
            cmp /tmp/a /tmp/b || die "copy"
            disconnect""")


@check(
    TCP_FILE,
    Layout("mptcp", "file", 4096),
    allow=(r"nvme.*", r"I/O error, dev nvme\dc\dn\d", r"block nvme\dn\d: no usable path"),
)
def restart_under_load(bench: Bench) -> None:
    """The target killed and restarted while fio writes: the kernel reconnects, the device is the same, all verifies."""
    with bench.target() as peer:
        bench.run("connect -k 5")
        before = bench.run("attached; identifiers")
        # fio makes up for a pause, so its rate leaves work for longer than all of this takes on a fast machine.
        load = bench.start("attached; verify $DEV 48 --rate=,3m")
        time.sleep(4)
        for pause_seconds in (0.5, 2.0):
            expect(load.running, f"fio ended before the target was killed: {load.output}")
            peer.kill()
            time.sleep(pause_seconds)
            peer.start()
            bench.run("controller", 60)
            time.sleep(1.5)
        load.wait(180)
        after = bench.run("attached; identifiers")
        expect(before == after, f"identifiers changed: {before} -> {after}")
        bench.run("attached; verify $DEV 48 --verify_only")
        bench.run("disconnect; connect; verify $DEV 48 --verify_only; disconnect", 120)
        messages = bench.guest.run("dmesg", bench.log)
        expect("identifiers changed" not in messages, "the kernel says that identifiers changed")
        expect(messages.count("reconnect") > 0 or messages.count("Reconnect") > 0, "no reconnect was seen")


@check(TCP_RAM, TCP_FILE_4K, quick=1)
def wire(bench: Bench) -> None:
    """tcpdump in the guest, tshark here: well-formed PDUs, right digests, commands and completions paired."""
    with bench.target(), bench.capture("eth0" if bench.peer_kind == "ours" else "lo") as reading:
        bench.run(
            """
            modprobe nvme-tcp; nvme discover -t tcp -a $ADDR -s $PORT >/dev/null
            for options in "" "-g -G" "--disable-sqflow"; do
              connect -i 2 -k 5 $options
              roundtrip $DEV 4096 1; roundtrip $DEV 400000 3
              blkdiscard -o 1M -l 1M $DEV; blkdiscard -z -o 2M -l 1M $DEV
              nvme smart-log /dev/$CTRL >/dev/null; nvme flush $DEV
              sleep 3
              disconnect
            done""",
            120,
        )
    for kind in ("ICReq", "ICResp", "CapsuleCmd", "CapsuleResp", "H2CData", "C2HData", "R2T"):
        expect(reading.pdus[kind], f"the capture has no {kind}")
    expect(reading.good_digests > 50, f"only {reading.good_digests} digests were checked")
