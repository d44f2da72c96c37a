"""Commands that change a namespace or a subsystem as a whole: format, sanitize, self-tests, create, attach, delete."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from nvmeof.cli.types import BYTES, U8, U16, U32, U64, Bytes, Number, parse_integer
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli.actions import Action, Outcome
from nvmeof.host.cli.feature_text import feature_name
from nvmeof.host.cli.files import Source
from nvmeof.host.cli.structures import Asked
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, Csi, FeatureId, LogPageId
from nvmeof.spec.features import FEATURE_DATA_BYTES
from nvmeof.spec.identify import build_controller_list
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.log_pages import DEVICE_SELF_TEST
from nvmeof.spec.media import FormatNvm, SanitizeAction, SanitizeCommand, SelfTestCode
from nvmeof.spec.namespace_management import NAMESPACE_CREATE, AttachmentSelect, ManagementSelect
from nvmeof.wire import build

POLL_SECONDS = 0.5
ATTACH_MAX = 2047


# -- erasing


async def _format(asked: Asked) -> Outcome:
    controller, nsid = asked.controller, asked["nsid"]
    if nsid is None:
        active = await controller.active_namespaces()
        if len(active) != 1:
            raise ConfigurationError("which namespace? Give one with -N, or all of them with -N 0xffffffff")
        nsid = active[0]
    index = asked["lbaf"]
    if nsid == NSID_ALL:
        if index is None or asked["block_size"] is not None:
            raise ConfigurationError("all namespaces are formatted to one format: give it with --lbaf")
    else:
        info = await controller.identify_namespace(nsid)
        if asked["block_size"] is not None:
            sizes = [1 << each.lbads if each.lbads else 0 for each in info.lbaf[: info.nlbaf + 1]]
            if asked["block_size"] not in sizes:
                there = ", ".join(map(str, filter(None, sizes)))
                raise ConfigurationError(
                    f"namespace {nsid} has no format of {asked['block_size']} bytes; it has {there}"
                )
            index = sizes.index(asked["block_size"])
        index = format_index(info.flbas) if index is None else index
    await _agreed(asked, f"format namespace {'all' if nsid == NSID_ALL else nsid}, which deletes its data")
    bits = FormatNvm.BITS.encode(
        lbafl=index & 0xF,
        lbafu=index >> 4,
        mset=int(asked["ms"]),
        pi=asked["pi"],
        pil=int(asked["pil"]),
        ses=asked["ses"],
    )
    await controller.admin_passthru(AdminOpcode.FORMAT_NVM, nsid=nsid, cdw10=bits)
    return f"formatted {'all namespaces' if nsid == NSID_ALL else f'namespace {nsid}'} with format {index}"


async def _agreed(asked: Asked, what: str) -> None:
    """Ask on a terminal whether data may be destroyed. Raises ConfigurationError without a terminal."""
    if asked["force"]:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{what}: give --force to allow it")
    print(f"{what}. Type yes to go on: ", end="", file=sys.stderr, flush=True)
    answer = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if answer.strip().lower() != "yes":
        raise NvmeofError("nothing was done")


async def _sanitize(asked: Asked) -> Outcome:
    action = asked["sanact"]
    destroys = action in (SanitizeAction.BLOCK_ERASE, SanitizeAction.OVERWRITE, SanitizeAction.CRYPTO_ERASE)
    if destroys:
        await _agreed(asked, "sanitize the subsystem, which deletes the data of all its namespaces")
    cdw10 = SanitizeCommand.BITS.encode(
        sanact=action,
        ause=asked["ause"],
        owpass=asked["owpass"] & 0xF if action == SanitizeAction.OVERWRITE else 0,
        oipbp=asked["oipbp"],
        ndas=asked["no_dealloc"],
        emvs=asked["emvs"],
    )
    await asked.controller.admin_passthru(AdminOpcode.SANITIZE, cdw10=cdw10, cdw11=asked["ovrpat"])
    return "the sanitize operation has begun: see sanitize-log" if destroys else "done"


async def _self_test(asked: Asked) -> Outcome:
    code, nsid = asked["code"], NSID_ALL if asked["nsid"] is None else asked["nsid"]
    await asked.controller.admin_passthru(AdminOpcode.DEVICE_SELF_TEST, nsid=nsid, cdw10=code)
    if code == SelfTestCode.ABORT:
        return "the self-test was aborted"
    if not asked["wait"]:
        return "the self-test has begun: see self-test-log"
    while True:
        log = DEVICE_SELF_TEST.parse(await asked.controller.get_log(LogPageId.DEVICE_SELF_TEST, 564))
        if not log.operation & 0xF:
            break
        await asyncio.sleep(POLL_SECONDS)
    result = log.results[0].status & 0xF
    if result:
        raise NvmeofError(f"the self-test ended with result {result:#x}: see self-test-log")
    return "the self-test found nothing wrong"


# -- namespaces


async def _create(asked: Asked) -> Outcome:
    controller, flbas, nsze, ncap = asked.controller, asked["flbas"], asked["nsze"], asked["ncap"]
    if asked["block_size"] is not None or asked["size"] is not None:
        # 0xFFFFFFFF reports the formats before there is a namespace
        common = await controller.identify_namespace(NSID_ALL)
        sizes = [1 << each.lbads if each.lbads else 0 for each in common.lbaf[: common.nlbaf + 1]]
        if asked["block_size"] is not None:
            if asked["block_size"] not in sizes:
                raise ConfigurationError(f"there is no format with blocks of {asked['block_size']} bytes")
            flbas = sizes.index(asked["block_size"])
        if asked["size"] is not None:
            block = sizes[flbas] if flbas < len(sizes) else 0
            if not block or asked["size"] % block:
                raise ConfigurationError(f"--size is no multiple of the block size, {block} bytes")
            nsze = asked["size"] // block
    if nsze is None:
        raise ConfigurationError("no size: give --nsze in blocks, or --size")
    data = build(
        NAMESPACE_CREATE, nsze=nsze, ncap=nsze if ncap is None else ncap, flbas=flbas, dps=asked["dps"],
        nmic=asked["nmic"], anagrpid=asked["anagrp_id"], nvmsetid=0, endgid=asked["endg_id"], lbstm=0, nphndls=0,
        znsco=0, rar=asked["rar"], ror=asked["ror"], rnumzrwa=0, phndl=[0] * 128,
    )  # fmt: skip
    done = await controller.admin_passthru(
        AdminOpcode.NAMESPACE_MANAGEMENT, data=data, cdw10=ManagementSelect.CREATE, cdw11=asked["csi"] << 24
    )
    nsid = done.result & 0xFFFFFFFF
    if asked["attach"]:
        await _attachment(asked, nsid, AttachmentSelect.ATTACH, [asked.controller.cntlid])
    return f"create-ns: Success, created nsid:{nsid}", {"nsid": nsid}


async def _attachment(asked: Asked, nsid: int, select: int, controllers: list[int]) -> None:
    await asked.controller.admin_passthru(
        AdminOpcode.NAMESPACE_ATTACHMENT, nsid=nsid, data=build_controller_list(controllers), cdw10=select
    )


def _controllers(text: str | None, own: int) -> list[int]:
    if text is None:
        return [own]
    numbers = [parse_integer(each) for each in text.split(",")]
    found = sorted({each for each in numbers if each is not None and 0 <= each <= 0xFFFF})
    if not found or None in numbers or len(found) > ATTACH_MAX:
        raise ConfigurationError(f"--controllers takes controller identifiers separated by commas, not {text!r}")
    return found


async def _attach(asked: Asked) -> Outcome:
    nsid = _needed(asked)
    await _attachment(asked, nsid, AttachmentSelect.ATTACH, _controllers(asked["controllers"], asked.controller.cntlid))
    return f"attached namespace {nsid}"


async def _detach(asked: Asked) -> Outcome:
    nsid = _needed(asked)
    await _attachment(asked, nsid, AttachmentSelect.DETACH, _controllers(asked["controllers"], asked.controller.cntlid))
    return f"detached namespace {nsid}"


async def _delete(asked: Asked) -> Outcome:
    nsid = _needed(asked)
    await asked.controller.admin_passthru(AdminOpcode.NAMESPACE_MANAGEMENT, nsid=nsid, cdw10=ManagementSelect.DELETE)
    return f"deleted {'all namespaces' if nsid == NSID_ALL else f'namespace {nsid}'}"


def _needed(asked: Asked) -> int:
    nsid = asked["nsid"]
    if nsid is None:
        raise ConfigurationError("which namespace? Give one with -N")
    return int(nsid)


# -- features


async def _set_feature(asked: Asked) -> Outcome:
    fid, data = asked["feature_id"], None
    length = asked["data_len"] or FEATURE_DATA_BYTES.get(fid, 0)
    if asked["path"] is not None:
        with Source(asked["path"]) as source:
            data = await source.read(length or 4096)
        if length and len(data) < length:
            raise ConfigurationError(f"{source.name} has {len(data)} bytes; the feature has {length}")
    elif fid == FeatureId.TIMESTAMP:
        data = asked["value"].to_bytes(8, "little")  # milliseconds, as nvme-cli takes them
    elif length:
        raise ConfigurationError(f"feature {fid:#04x} has {length} bytes of data: give a file with --data")
    value = 0 if fid == FeatureId.TIMESTAMP else asked["value"]
    if value > 0xFFFFFFFF:
        raise ConfigurationError(f"--value {value:#x} is more than 32 bits")
    result = await asked.controller.set_feature(
        fid, value, save=asked["save"], nsid=asked["nsid"] or 0, cdw12=asked["cdw12"], data=data
    )
    name = feature_name(fid)
    value, cdw12 = asked["value"], asked["cdw12"]
    text = f"set-feature:{fid:#04x} ({name}), value:{value:#010x}, cdw12:{cdw12:08x}, save:{asked['save']:d}"
    return text, {"feature": fid, "name": name, "value": value, "result": result}


def _number(name: str, kind: Any, text: str, *, default: int | None = 0, short: str | None = None) -> Any:
    names = [*([short] if short else []), f"--{name}"]
    return click.option(*names, type=kind, default=default, metavar="N", help=text)


def _bit(name: str, text: str) -> Any:
    return click.option(f"--{name}", type=click.Choice(["0", "1"]), default="0", help=text)


_NSID = click.option("-N", "--namespace-id", "nsid", type=U32, metavar="NSID", help="Namespace.")
_FORCE = click.option("--force", is_flag=True, help="Erase the data without asking.")
_BLOCK_SIZE = click.option(
    "-b", "--block-size", type=BYTES, metavar="SIZE", help="The format with blocks of this size."
)
_CONTROLLERS = click.option(
    "-c", "--controllers", metavar="LIST", help="Controller identifiers.  [default: this host's]"
)

ACTIONS = (
    Action(
        "format",
        "Format NVM: give a namespace a block format, and delete its data.",
        _format,
        (
            _NSID,
            _number("lbaf", Number(0, 63), "Format, by its number.  [default: as it is]", default=None, short="-l"),
            _BLOCK_SIZE,
            _number("ses", Number(0, 2), "Secure erase: 1 user data, 2 cryptographic."),
            _number("pi", Number(0, 3), "Protection information."),
            _bit("pil", "Its place."),
            _bit("ms", "Metadata: 1 within the data."),
            _FORCE,
        ),
        namespace=False,
    ),
    Action(
        "sanitize",
        "Sanitize: delete all data of the subsystem, beyond recovery.",
        _sanitize,
        (
            click.option(
                "--sanact",
                type=Number(1, 5),
                required=True,
                metavar="N",
                help="1 exit failure mode, 2 block erase, 3 overwrite, 4 crypto erase, 5 exit media verification.",
            ),
            click.option("--ause", is_flag=True, help="Allow unrestricted exit."),
            click.option("-d", "--no-dealloc", is_flag=True, help="Do not deallocate afterwards."),
            click.option("--oipbp", is_flag=True, help="Overwrite: invert the pattern between passes."),
            _number("owpass", Number(0, 15), "Overwrite passes; 0: 16.", default=1),
            _number("ovrpat", U32, "Overwrite pattern, 32 bits."),
            click.option("--emvs", is_flag=True, help="Enter media verification afterwards."),
            _FORCE,
        ),
        namespace=False,
    ),
    Action(
        "device-self-test",
        "Begin or abort a device self-test.",
        _self_test,
        (
            _NSID,
            click.option(
                "--self-test-code",
                "code",
                type=Number(0, 15),
                default=1,
                show_default=True,
                metavar="N",
                help="1 short, 2 extended, 0xf abort.",
            ),
            click.option("--wait", is_flag=True, help="Wait for its end; exit code 1 where it found something."),
        ),
        namespace=False,
    ),
    Action(
        "create-ns",
        "Create a namespace; it is attached to no controller yet.",
        _create,
        (
            _number("nsze", U64, "Size in blocks.", default=None),
            _number("ncap", U64, "Capacity in blocks.  [default: the size]", default=None),
            click.option("--size", type=BYTES, metavar="SIZE", help="Size in bytes: 4k, 1G."),
            _number("flbas", U8, "Block format, by its number."),
            _BLOCK_SIZE,
            _number("dps", U8, "Protection."),
            _number("nmic", U8, "1: may be shared."),
            _number("anagrp-id", U32, "ANA group."),
            _number("endg-id", U16, "Endurance group."),
            click.option(
                "-y", "--csi", type=Number(0, max(Csi)), default=0, metavar="CSI", help="Command set; 2: zoned."
            ),
            _number("rar", U32, "Zoned: active resources."),
            _number("ror", U32, "Zoned: open resources."),
            click.option("--attach", is_flag=True, help="Attach it to this host too."),
        ),
        namespace=False,
    ),
    Action("attach-ns", "Attach a namespace to controllers.", _attach, (_NSID, _CONTROLLERS), namespace=False),
    Action("detach-ns", "Detach a namespace from controllers.", _detach, (_NSID, _CONTROLLERS), namespace=False),
    Action("delete-ns", "Delete a namespace and its data.", _delete, (_NSID,), namespace=False),
    Action(
        "set-feature",
        "Set a feature. What belongs to a controller ends with this command's connection.",
        _set_feature,
        (
            click.option("--feature-id", type=U8, required=True, metavar="FID", help="Feature identifier."),
            click.option("-V", "--value", type=U64, default=0, metavar="N", help="Its value, CDW11."),
            _number("cdw12", U32, "CDW12."),
            _NSID,
            click.option(
                "-l",
                "--data-len",
                type=Bytes(1 << 20),
                metavar="SIZE",
                help="Bytes of data.  [default: what the feature has]",
            ),
            click.option("-d", "--data", "path", type=click.Path(dir_okay=False), help="File with the data."),
            click.option("--save", is_flag=True, help="Save it over resets."),
        ),
        namespace=False,
    ),
)
COMMANDS = tuple(action.command() for action in ACTIONS)
