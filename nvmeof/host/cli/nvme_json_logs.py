"""Log pages as nvme-cli 2.13 prints them with ``-o json``: its keys, its numbers, its order.

nvme-cli's names of the fields are not the specification's; tests/interop compares the two programs field by field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from nvmeof.spec.command_names import command_name
from nvmeof.spec.endurance import ENDURANCE_GROUP
from nvmeof.spec.features import parse_timestamp
from nvmeof.spec.log_pages import (
    CHANGED_NAMESPACES,
    COMMANDS_SUPPORTED_AND_EFFECTS,
    DEVICE_SELF_TEST,
    FEATURES_SUPPORTED_AND_EFFECTS,
    FIRMWARE_SLOT,
    RESERVATION_NOTIFICATION,
    SANITIZE_STATUS,
    SUPPORTED_LOG_PAGES,
)
from nvmeof.spec.media import (
    LBA_STATUS_LOG_HEADER,
    LBA_STATUS_NAMESPACE,
    LBA_STATUS_RANGE,
    SSI,
    SSTAT,
    SanitizeOutcome,
    SelfTestValid,
)
from nvmeof.spec.persistent_events import HEADER, EventType, parse_events
from nvmeof.wire import plain

DEVICE = "nvme0"
"""The name of the controller: there is no device node, and one command has one controller."""


def firmware_slots(data: bytes) -> dict[str, Any]:
    """Return ``fw-log``: each slot as the number that its eight characters are, and the characters."""
    log = FIRMWARE_SLOT.parse(data)
    slots: dict[str, Any] = {"Active Firmware Slot (afi)": log.afi}
    for number in range(1, 8):
        raw = data[8 * number : 8 * number + 8]
        if any(raw):
            text = "".join(chr(byte) if 32 < byte < 127 else "." for byte in raw)
            slots[f"Firmware Rev Slot {number}"] = f"{int.from_bytes(raw, 'little')} ({text})"
    return {DEVICE: slots}


def changed_namespaces(data: bytes) -> dict[str, Any]:
    """Return ``changed-ns-list-log`` and ``changed-alloc-ns-list-log``."""
    nsids = [nsid for nsid in CHANGED_NAMESPACES.parse(data).nsids if nsid]
    changed: dict[str, Any] = {}
    if nsids == [0xFFFFFFFF]:
        changed["description"] = "More than 1024 namespaces have changed"
    else:
        changed = {f"nsid {number}": f"{nsid:#x}" for number, nsid in enumerate(nsids, 1)}
    return {"Changed Attached Namespace List Log": DEVICE, DEVICE: changed}


def effects(data: bytes, csi: int) -> dict[str, Any]:
    """Return one command set's object of ``effects-log``."""
    log = COMMANDS_SUPPORTED_AND_EFFECTS.parse(data)
    return {
        "command_set_identifier": csi,
        "admin_cmd_set": {f"ACS_{at} ({_command(0, at)})": each for at, each in enumerate(log.acs) if each},
        "io_cmd_set": {f"IOCS_{at} ({_command(1, at)})": each for at, each in enumerate(log.iocs) if each},
    }


_NAMES = {
    "Async Event Request": "Asynchronous Event Request",
    "Device Self Test": "Device Self-test",
    "Format Nvm": "Format NVM",
    "Get Lba Status": "Get LBA Status",
}


def _command(qid: int, opcode: int) -> str:
    name = command_name(qid, opcode)
    return "Unknown" if name.startswith("Command ") else _NAMES.get(name, name)


def self_test(data: bytes, entries: int) -> dict[str, Any]:
    """Return ``self-test-log``, its newest ``entries`` results."""
    log = DEVICE_SELF_TEST.parse(data)
    reports = []
    for each in log.results[:entries]:
        report: dict[str, Any] = {"Self test result": each.status & 0xF}
        if each.status & 0xF != 0xF:
            report |= {
                "Self test code": each.status >> 4,
                "Segment number": each.segment,
                "Valid Diagnostic Information": each.valid,
                "Power on hours": each.power_on_hours,
            }
            valid = (
                (SelfTestValid.NSID, "Namespace Identifier", each.nsid),
                (SelfTestValid.FLBA, "Failing LBA", each.failing_lba),
                (SelfTestValid.SCT, "Status Code Type", each.sct),
                (SelfTestValid.SC, "Status Code", each.sc),
            )
            report |= {name: value for flag, name, value in valid if each.valid & flag}
            report["Vendor Specific"] = int.from_bytes(each.vs, "little")
        reports.append(report)
    return {
        "Current Device Self-Test Operation": log.operation & 0xF,
        "Current Device Self-Test Completion": log.completion & 0x7F,
        "List of Valid Reports": reports,
    }


_ENDURANCE = {
    "egcw": "critical_warning", "egfeat": "endurance_group_features", "avsp": "avl_spare",
    "avspt": "avl_spare_threshold", "pused": "percent_used", "did": "domain_identifier", "ee": "endurance_estimate",
    "dur": "data_units_read", "duw": "data_units_written", "muw": "media_units_written", "hrc": "host_read_cmds",
    "hwc": "host_write_cmds", "mdie": "media_data_integrity_err", "neile": "num_err_info_log_entries",
    "tegcap": "total_end_grp_cap", "uegcap": "unalloc_end_grp_cap",
}  # fmt: skip


def endurance(data: bytes) -> dict[str, Any]:
    """Return ``endurance-log``."""
    return {_ENDURANCE[name]: value for name, value in plain(ENDURANCE_GROUP.parse(data)).items()}


def supported_logs(data: bytes) -> dict[str, Any]:
    """Return ``supported-log-pages``; nvme-cli's keys end with a blank, and so do these."""
    lids = SUPPORTED_LOG_PAGES.parse(data).lids
    return {"supported_logs": [{f"lid_{lid:#x} ": value} for lid, value in enumerate(lids) if value]}


def features_supported(data: bytes) -> dict[str, Any]:
    """Return ``fid-support-effects-log``."""
    fids = FEATURES_SUPPORTED_AND_EFFECTS.parse(data).fids
    return {"fid_support": [{f"fid_{fid}": value} for fid, value in enumerate(fids) if value]}


def mi_supported(data: bytes) -> dict[str, Any]:
    """Return ``mi-cmd-support-effects-log``."""
    commands = struct.unpack_from("<256I", data)
    return {"mi_command_support": [{f"mi_command_{at}": value} for at, value in enumerate(commands) if value]}


def reservation_notification(data: bytes) -> dict[str, Any]:
    """Return ``resv-notif-log``."""
    log = RESERVATION_NOTIFICATION.parse(data)
    return {"count": log.log_page_count, "rn_log_type": log.type, "num_logs": log.available, "NSID": log.nsid}


_SANITIZE_STATUS = {
    SanitizeOutcome.NEVER: "NVM Subsystem has never been sanitized.",
    SanitizeOutcome.SUCCESS: "Most Recent Sanitize Command Completed Successfully.",
    SanitizeOutcome.IN_PROGRESS: "Sanitize in Progress.",
    SanitizeOutcome.FAILED: "Most Recent Sanitize Command Failed.",
    SanitizeOutcome.SUCCESS_UNEXPECTED_DEALLOCATION: (
        "Most Recent Sanitize Command (No-Deallocate After Sanitize) Completed Successfully."
    ),
}
_SANITIZE_STATES = (
    "Idle", "Restricted Processing", "Restricted Failure", "Unrestricted Processing", "Unrestricted Failure",
    "Media Verification", "Post-Verification Deallocation",
)  # fmt: skip


def sanitize(data: bytes) -> dict[str, Any]:
    """Return ``sanitize-log``."""
    log = SANITIZE_STATUS.parse(data)
    status, state = SSTAT.decode(log.sstat), SSI.decode(log.ssi)
    outcome = status["sos"]
    shown: dict[str, Any] = {"sprog": log.sprog}
    if outcome == SanitizeOutcome.IN_PROGRESS:
        shown["progress_percent"] = log.sprog * 100 / 65536
    known = outcome in list(SanitizeOutcome)
    sans = state["sans"]
    return {
        DEVICE: {
            **shown,
            "sstat": {
                "media_verification_canceled": status["mvcncld"],
                "global_erased": status["gde"],
                "no_cmplted_passes": status["opc"],
                "status": f"({outcome}) {_SANITIZE_STATUS[SanitizeOutcome(outcome)] if known else 'Unknown.'}",
            },
            "cdw10_info": log.scdw10,
            "time_over_write": log.eto,
            "time_block_erase": log.etbe,
            "time_crypto_erase": log.etce,
            "time_over_write_no_dealloc": log.etond,
            "time_block_erase_no_dealloc": log.etbend,
            "time_crypto_erase_no_dealloc": log.etcend,
            "time_post_verification_dealloc": log.etpvds,
            "sanitize_state_information": {
                "sanitize_state": f"({sans}) "
                + (f"{_SANITIZE_STATES[sans]} state" if sans < len(_SANITIZE_STATES) else "Unknown state")
            },
        }
    }


def lba_status_log(data: bytes) -> dict[str, Any]:
    """Return ``lba-status-log``."""
    header = LBA_STATUS_LOG_HEADER.parse(data)
    elements, at = [], LBA_STATUS_LOG_HEADER.sizeof()
    for _ in range(header.nlslne):
        if at + 16 > len(data):
            break
        element = LBA_STATUS_NAMESPACE.parse(data[at : at + 16])
        at += 16
        count = 0 if element.nlrd == 0xFFFFFFFF else element.nlrd
        ranges = [LBA_STATUS_RANGE.parse(data[at + 16 * i : at + 16 * i + 16]) for i in range(count)]
        at += 16 * count
        elements.append(
            {
                "neid": element.neid, "nlrd": element.nlrd, "ratype": element.ratype,
                "descriptor": [{"rslba": each.rslba, "rnlb": each.rnlb} for each in ranges],
            }
        )  # fmt: skip
    return {
        "lslplen": header.lslplen,
        "nlslne": header.nlslne,
        "estulb": header.estulb,
        "lsgc": header.lsgc,
        "ns_elements": elements,
    }


def persistent_events(data: bytes) -> dict[str, Any]:
    """Return ``persistent-event-log``: the header under the specification's names, and each event's own data in hex.

    nvme-cli 2.13 has other keys, which were not seen for a whole log.
    """
    header = plain(HEADER.parse(data))
    header["tstmp"] = parse_timestamp(header["tstmp"])
    header["seb"] = [f"{each:#x}" for each in range(256) if header["seb"][each // 8] >> each % 8 & 1]
    return {**header, "list_of_event_entries": list(_events(data))}


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for number, event in enumerate(parse_events(data)):
        known = event.type in list(EventType)
        yield {
            "event_number": number,
            "event_type": event.type,
            "event_type_name": EventType(event.type).name.replace("_", " ").capitalize()
            if known
            else "Vendor specific",
            "event_time_stamp": parse_timestamp(event.timestamp),
            "ctrl_id": event.cntlid,
            "port_id": event.portid,
            "data": event.data.hex(),
        }
