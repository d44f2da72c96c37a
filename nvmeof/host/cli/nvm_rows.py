"""Commands on blocks that move no data to or from a file of the host: compare, verify, write-uncor, copy, dsm; and
reservations.
"""

from __future__ import annotations

from typing import Any

import click

from nvmeof.cli.types import BYTES, U32, U64, Number, parse_integer
from nvmeof.errors import ConfigurationError, NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.cli.actions import Action, Outcome
from nvmeof.host.cli.data import block_count_option, blocks_option, check_range, range_blocks, start_option
from nvmeof.host.cli.files import Source
from nvmeof.host.cli.structures import Asked
from nvmeof.host.namespace import Namespace
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.reservations import (
    AcquireAction,
    Cptpl,
    RegisterAction,
    ReleaseAction,
    ReservationCommand,
    ReservationType,
    pack_keys,
    pack_release,
)
from nvmeof.spec.status import Status

COMPARE_BYTES = 1 << 20
"""How much of a file is in memory at a time."""
_RANGE = (start_option, block_count_option, blocks_option)


def _namespace(asked: Asked) -> Namespace:
    assert asked.namespace is not None
    return asked.namespace


def _range(asked: Asked) -> tuple[Namespace, int, int]:
    """Return the namespace, the first block and the number of blocks; one block unless told otherwise."""
    namespace, start = _namespace(asked), asked["start_block"]
    count = range_blocks(namespace, asked["block_count"], asked["blocks"], None) or 1
    check_range(namespace, start, count)
    return namespace, start, count


async def _compare(asked: Asked) -> Outcome:
    namespace, start = _namespace(asked), asked["start_block"]
    size = namespace.block_bytes
    with Source(asked["path"]) as source:
        count = range_blocks(namespace, asked["block_count"], asked["blocks"], asked["data_size"])
        left = None if count is None else count * size
        done = 0
        while left is None or left:
            data = await source.read(COMPARE_BYTES if left is None else min(COMPARE_BYTES, left))
            if not data:
                break
            blocks = -(-len(data) // size)
            check_range(namespace, start, blocks)
            if not await namespace.compare(start, data.ljust(blocks * size, b"\0")):
                raise NvmeStatusError(
                    Status.COMPARE_FAILURE,
                    f"{source.name} and namespace {namespace.nsid} differ in blocks {start} to {start + blocks - 1}",
                    dnr=True,
                )
            start, done = start + blocks, done + len(data)
            left = None if left is None else left - len(data)
    if not done or left:
        raise ConfigurationError(f"{source.name} has {done} bytes, fewer than were to be compared")
    return f"compared {done} bytes with namespace {namespace.nsid}: they are the same"


async def _verify(asked: Asked) -> Outcome:
    namespace, start, count = _range(asked)
    await namespace.verify(start, count)
    return f"verified {count} blocks from block {start} of namespace {namespace.nsid}"


async def _write_uncorrectable(asked: Asked) -> Outcome:
    namespace, start, count = _range(asked)
    await namespace.write_uncorrectable(start, count)
    return f"made {count} blocks from block {start} of namespace {namespace.nsid} unreadable"


async def _write_zeroes(asked: Asked) -> Outcome:
    namespace, start, count = _range(asked)
    await namespace.write_zeroes(start, count, deallocate=asked["deac"])
    return f"zeroed {count} blocks from block {start} of namespace {namespace.nsid}"


async def _flush(asked: Asked) -> Outcome:
    await _namespace(asked).flush()
    return f"flushed namespace {asked.nsid}"


def _numbers(text: str, name: str) -> list[int]:
    numbers = [parse_integer(item) for item in text.split(",")]
    found = [number for number in numbers if number is not None and number >= 0]
    if len(found) < len(numbers):
        raise ConfigurationError(f"{name} takes numbers separated by commas, not {text!r}")
    return found


def _ranges(asked: Asked, *, zeroes_based: bool = False) -> list[tuple[int, int]]:
    starts, counts = _numbers(asked["slbs"], "--slbs"), _numbers(asked["lengths"], "--blocks")
    if len(starts) != len(counts):
        raise ConfigurationError(f"{len(starts)} first blocks, but {len(counts)} lengths")
    return [(start, count + zeroes_based) for start, count in zip(starts, counts, strict=True)]


async def _dsm(asked: Asked) -> Outcome:
    namespace, ranges = _namespace(asked), _ranges(asked)
    if not (asked["ad"] or asked["idw"] or asked["idr"]):
        raise ConfigurationError("no attribute of the ranges: give --ad (deallocate), --idw or --idr")
    for start, count in ranges:
        check_range(namespace, start, count)
    await namespace.dataset_management(
        ranges, deallocate=asked["ad"], integral_write=asked["idw"], integral_read=asked["idr"]
    )
    what = "deallocated" if asked["ad"] else "described"
    total = sum(count for _, count in ranges)
    return f"{what} {total} blocks in {len(ranges)} ranges of namespace {namespace.nsid}"


async def _copy(asked: Asked) -> Outcome:
    namespace, ranges = _namespace(asked), _ranges(asked, zeroes_based=True)
    total = sum(count for _, count in ranges)
    check_range(namespace, asked["sdlba"], total)
    if asked["snsid"] is None:
        for start, count in ranges:
            check_range(namespace, start, count)
    await namespace.copy(asked["sdlba"], ranges, from_nsid=asked["snsid"], fua=asked["fua"])
    return f"copied {total} blocks to block {asked['sdlba']} of namespace {namespace.nsid}"


# -- reservations


async def _reserve(asked: Asked, opcode: NvmOpcode, command: ReservationCommand, data: bytes) -> None:
    namespace = _namespace(asked)
    await namespace.port.io(sqe_builders.reservation(opcode, namespace.nsid, command.encode()), data_out=data)


async def _register(asked: Asked) -> Outcome:
    action = RegisterAction(asked["rrega"])
    command = ReservationCommand(action=action, ignore_existing_key=asked["iekey"], cptpl=asked["cptpl"])
    await _reserve(asked, NvmOpcode.RESERVATION_REGISTER, command, pack_keys(asked["crkey"], asked["nrkey"]))
    done = ("registered with", "withdrew the registration of", "replaced the key of")[action]
    return f"{done} namespace {asked.nsid}"


async def _acquire(asked: Asked) -> Outcome:
    command = ReservationCommand(action=asked["racqa"], ignore_existing_key=asked["iekey"], rtype=asked["rtype"])
    await _reserve(asked, NvmOpcode.RESERVATION_ACQUIRE, command, pack_keys(asked["crkey"], asked["prkey"]))
    return f"{'acquired' if asked['racqa'] == AcquireAction.ACQUIRE else 'preempted'} namespace {asked.nsid}"


async def _release(asked: Asked) -> Outcome:
    action = ReleaseAction(int(asked["rrela"]))
    command = ReservationCommand(action=action, ignore_existing_key=asked["iekey"], rtype=asked["rtype"])
    await _reserve(asked, NvmOpcode.RESERVATION_RELEASE, command, pack_release(asked["crkey"]))
    return f"{'released' if action == ReleaseAction.RELEASE else 'cleared'} namespace {asked.nsid}"


def _key(name: str, text: str) -> Any:
    return click.option(f"--{name}", type=U64, default=0, metavar="KEY", help=text)


_CRKEY = _key("crkey", "Key that this host is registered with.")
_IEKEY = click.option("--iekey", is_flag=True, help="Ignore this host's existing key.")
_RTYPE = click.option(
    "--rtype",
    type=Number(min(ReservationType), max(ReservationType)),
    default=1,
    show_default=True,
    metavar="N",
    help="1 write exclusive, 2 exclusive access, 3 and 4 with registrants only, 5 and 6 with all registrants.",
)
_SLBS = click.option("--slbs", required=True, metavar="LIST", help="First blocks, separated by commas.")
_FUA = click.option("--force-unit-access", "--fua", "fua", is_flag=True, help="Force Unit Access.")

ACTIONS = (
    Action(
        "compare",
        "Compare a file or stdin with logical blocks: the controller does it. Exit code 1: they differ.",
        _compare,
        (
            *_RANGE,
            click.option("-z", "--data-size", type=BYTES, help="Size of the data in bytes: 4096, 4k, 1M."),
            click.option("-d", "--data", "path", type=click.Path(dir_okay=False), help="File.  [default: stdin]"),
        ),
        taken=("-c",),
    ),
    Action(
        "verify", "Verify that logical blocks can be read, without transferring them.", _verify, _RANGE, taken=("-c",)
    ),
    Action(
        "write-uncor",
        "Make logical blocks unreadable, until they are written again.",
        _write_uncorrectable,
        _RANGE,
        taken=("-c",),
    ),
    Action(
        "write-zeroes",
        "Set logical blocks to zero without sending zeroes.",
        _write_zeroes,
        (*_RANGE, click.option("--deac", is_flag=True, help="Deallocate the blocks where that reads as zeroes.")),
        taken=("-c",),
    ),
    Action("flush", "Bring all completed writes to the medium.", _flush),
    Action(
        "dsm",
        "Dataset Management: deallocate ranges, or say how they will be used.",
        _dsm,
        (
            _SLBS,
            click.option(
                "--blocks", "lengths", required=True, metavar="LIST", help="Lengths in blocks, separated by commas."
            ),
            click.option("--ad", is_flag=True, help="Deallocate."),
            click.option("--idw", is_flag=True, help="Integral dataset for write."),
            click.option("--idr", is_flag=True, help="Integral dataset for read."),
        ),
    ),
    Action(
        "copy",
        "Have the controller copy ranges of blocks, one behind the other.",
        _copy,
        (
            click.option("--sdlba", type=U64, required=True, metavar="LBA", help="First block to copy to."),
            _SLBS,
            click.option(
                "--blocks", "lengths", required=True, metavar="LIST", help="Lengths, 0's-based as nvme-cli has them."
            ),
            click.option("--snsid", type=U32, metavar="NSID", help="From another namespace of the subsystem."),
            _FUA,
        ),
    ),
    Action(
        "resv-register",
        "Reservation Register: register, withdraw or replace this host's key.",
        _register,
        (
            _CRKEY,
            _key("nrkey", "New key."),
            _IEKEY,
            click.option(
                "--rrega",
                type=Number(0, 2),
                default=0,
                show_default=True,
                metavar="N",
                help="0 register, 1 withdraw, 2 replace.",
            ),
            click.option(
                "--cptpl",
                type=Number(0, max(Cptpl)),
                default=0,
                metavar="N",
                help="Persistence: 0 as it is, 2 off, 3 on.",
            ),
        ),
    ),
    Action(
        "resv-acquire",
        "Reservation Acquire: acquire, preempt, or preempt and abort.",
        _acquire,
        (
            _CRKEY,
            _key("prkey", "Key to preempt."),
            _RTYPE,
            _IEKEY,
            click.option(
                "--racqa",
                type=Number(0, 2),
                default=0,
                show_default=True,
                metavar="N",
                help="0 acquire, 1 preempt, 2 preempt and abort.",
            ),
        ),
    ),
    Action(
        "resv-release",
        "Reservation Release: release the reservation, or clear all registrations.",
        _release,
        (
            _CRKEY,
            _RTYPE,
            _IEKEY,
            click.option(
                "--rrela", type=click.Choice(["0", "1"]), default="0", show_default=True, help="0 release, 1 clear."
            ),
        ),
    ),
)
COMMANDS = tuple(action.command() for action in ACTIONS)
