"""Raw commands and properties: admin-passthru, io-passthru, show-regs, get-property, set-property."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from nvmeof.cli.types import U8, U32, U64, Bytes, Number
from nvmeof.errors import ConfigurationError, NvmeStatusError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.actions import Action, Outcome
from nvmeof.host.cli.files import Source
from nvmeof.host.cli.structures import Asked, Structure, write_bytes
from nvmeof.spec.command_names import command_name
from nvmeof.spec.enums import DataTransfer
from nvmeof.spec.properties import PROPERTIES

DATA_MAX_BYTES = 1 << 30
DWORDS = ("cdw2", "cdw3", "cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")


def _passthru(name: str, help_text: str, *, io: bool) -> click.Command:
    async def callback(
        opcode: int, nsid: int, data_len: int, path: str | None, flags: int, raw: bool, show: bool, dry: bool,
        write: bool, read: bool, output: str, **options: Any,
    ) -> None:  # fmt: skip
        dwords = {each: options.pop(each) for each in DWORDS}
        data = await _data_of(opcode, data_len, path, write, read)
        if show or dry:
            out.print_fields(
                [("opcode", f"{opcode:#04x}"), ("flags", f"{flags:#04x}"), ("nsid", f"{nsid:#x}"),
                 *((each, f"{value:#010x}") for each, value in dwords.items()), ("data_len", data_len)]
            )  # fmt: skip
        if dry:
            return
        async with await opt.open_controller(options) as controller:
            send = controller.io_passthru if io else controller.admin_passthru
            incoming = 0 if data is not None else data_len
            done = await send(opcode, nsid=nsid, data=data, data_bytes=incoming, flags=flags, **dwords)
        if raw or output == "binary":
            write_bytes(done.data)
        elif output == "json":
            out.print_json({"opcode": opcode, "result": done.result, "data": done.data})
        else:
            kind, called = ("IO", command_name(1, opcode)) if io else ("Admin", command_name(0, opcode))
            print(f"{kind} Command {called} is Success and result: {done.result:#010x}")
            for line in out.hexdump(done.data):
                print(line)

    callback.__doc__ = help_text
    made: Callable[..., Any] = opt.coroutine(callback)
    for option in reversed((*_PASSTHRU, opt.controller_options)):
        made = option(made)
    return opt.command(name)(made)


async def _data_of(opcode: int, length: int, path: str | None, write: bool, read: bool) -> bytes | None:
    """Return the data to send; None where none is. Raises ConfigurationError where options and opcode disagree."""
    direction = opcode & 3
    if (write and direction == DataTransfer.CONTROLLER_TO_HOST) or (
        read and direction == DataTransfer.HOST_TO_CONTROLLER
    ):
        raise ConfigurationError(f"opcode {opcode:#04x} has another data direction: leave --read and --write out")
    if direction != DataTransfer.HOST_TO_CONTROLLER:
        if path is not None:
            raise ConfigurationError(f"opcode {opcode:#04x} sends no data: leave --input-file out")
        return None
    if not length and path is None:
        return None
    with Source(path) as source:
        data = await source.read(length or DATA_MAX_BYTES)
    if length and len(data) < length:
        raise ConfigurationError(f"{source.name} has {len(data)} bytes; --data-len says {length}")
    return data


_PASSTHRU = (
    click.option("--opcode", type=U8, required=True, metavar="N", help="Opcode."),
    click.option(
        "-N", "--namespace-id", "nsid", type=U32, default=0, metavar="NSID", help="Namespace.  [default: none]"
    ),
    click.option("-l", "--data-len", type=Bytes(DATA_MAX_BYTES), default=0, metavar="SIZE", help="Bytes of data."),
    click.option(
        "--input-file", "path", type=click.Path(dir_okay=False), metavar="FILE", help="Data to send.  [default: stdin]"
    ),
    click.option("--flags", type=U8, default=0, metavar="N", help="Command flags, byte 1."),
    *(click.option(f"--{each}", type=U32, default=0, metavar="N", help=f"{each.upper()}.") for each in DWORDS),
    click.option("-r", "--read", is_flag=True, help="Data comes from the controller, as bits 1:0 of the opcode say."),
    click.option("--write", is_flag=True, help="Data goes to the controller, as bits 1:0 of the opcode say."),
    click.option("-b", "--raw-binary", "raw", is_flag=True, help="Raw data on stdout."),
    click.option("--show-command", "show", is_flag=True, help="Print the command too."),
    click.option("--dry-run", "dry", is_flag=True, help="Print the command, and do not send it."),
    click.option(
        "-o",
        "--output-format",
        "output",
        type=click.Choice(["normal", "json", "binary"]),
        default="normal",
        show_default=True,
        help="For people, for programs, or the bytes themselves.",
    ),
)


# -- properties

_NVME_NAMES = {"VS": "version"}
_FABRICS_ABSENT = {
    "intms": -1, "intmc": -1, "aqa": -1, "asq": (1 << 64) - 1, "acq": (1 << 64) - 1, "cmbloc": -1, "cmbsz": -1,
    "bpinfo": -1, "bprsel": -1, "bpmbl": (1 << 64) - 1, "cmbmsc": (1 << 64) - 1, "cmbsts": -1, "cmbebs": -1,
    "cmbswtp": -1, "pmrcap": -1, "pmrctl": -1, "pmrsts": -1, "pmrebs": -1, "pmrswtp": -1, "pmrmscl": 0xFFFFFFFF,
    "pmrmscu": 0xFFFFFFFF,
}  # fmt: skip
"""Registers that a fabrics controller has not, as nvme-cli prints them."""
_REGISTERS = (
    "cap",
    "vs",
    "intms",
    "intmc",
    "cc",
    "csts",
    "nssr",
    "aqa",
    "asq",
    "acq",
    "cmbloc",
    "cmbsz",
    "bpinfo",
    "bprsel",
    "bpmbl",
    "cmbmsc",
    "cmbsts",
    "cmbebs",
    "cmbswtp",
    "nssd",
    "crto",
    "pmrcap",
    "pmrctl",
    "pmrsts",
    "pmrebs",
    "pmrswtp",
    "pmrmscl",
    "pmrmscu",
)
_ABSENT = b"\xff" * 8


async def _registers(asked: Asked) -> bytes:
    """Read all properties, 8 bytes for each; those that the controller refuses are all ones."""
    parts = []
    for offset, each in PROPERTIES.items():
        try:
            value = await asked.controller.property_get(offset, each.size)
        except NvmeStatusError:
            parts.append(_ABSENT)
        else:
            parts.append(value.to_bytes(8, "little"))
    return b"".join(parts)


def _values(data: bytes) -> dict[str, int]:
    raw = {each.name.lower(): data[8 * at : 8 * at + 8] for at, each in enumerate(PROPERTIES.values())}
    return {name: int.from_bytes(value, "little") for name, value in raw.items() if value != _ABSENT}


def _registers_json(data: bytes, asked: Asked) -> Any:
    values = _values(data)
    return {name: values.get(name, _FABRICS_ABSENT.get(name, -1)) for name in _REGISTERS}


def _registers_lines(data: bytes, asked: Asked) -> Iterator[str]:
    for name, value in _values(data).items():
        yield f"{_NVME_NAMES.get(name.upper(), name):<8}: {value:#x}"


_REGISTER_TITLES = {
    0x00: "Controller Capabilities", 0x08: "Version", 0x14: "Controller Configuration", 0x1C: "Controller Status",
    0x20: "NVM Subsystem Reset", 0x64: "NVM Subsystem Shutdown", 0x68: "Controller Ready Timeouts",
}  # fmt: skip


async def _get_property(asked: Asked) -> Outcome:
    offset = asked["offset"]
    size = PROPERTIES[offset].size if offset in PROPERTIES else 4
    value = await asked.controller.property_get(offset, size)
    name = _REGISTER_TITLES.get(offset, "unknown property")
    return f"{value:x}", {"property": f"{offset:#x}", "name": name, "value": f"{value:x}"}


async def _set_property(asked: Asked) -> Outcome:
    offset = asked["offset"]
    await asked.controller.property_set(offset, asked["value"], PROPERTIES[offset].size if offset in PROPERTIES else 4)
    return (
        f"set-property: {offset:02x} ({_REGISTER_TITLES.get(offset, 'unknown property')}), value: {asked['value']:#x}"
    )


_OFFSET = click.option(
    "-O", "--offset", type=Number(0, 0xFFF), required=True, metavar="N", help="Offset of the property."
)
REGISTERS = Structure(
    "show-regs",
    "The properties of the controller: CAP, VS, CC, CSTS and so on.",
    _registers,
    _registers_json,
    _registers_lines,
)
COMMANDS = (
    REGISTERS.command(),
    Action("get-property", "One property of the controller.", _get_property, (_OFFSET,), namespace=False).command(),
    Action(
        "set-property",
        "Set a property of this command's controller.",
        _set_property,
        (_OFFSET, click.option("-V", "--value", type=U64, required=True, metavar="N", help="Its value.")),
        namespace=False,
    ).command(),
    _passthru("admin-passthru", "Send any admin command, and show what came back.", io=False),
    _passthru("io-passthru", "Send any I/O command, and show what came back.", io=True),
)
