"""JSON with nvme-cli's keys (nvme-cli 2.13, `-o json`), so that a program reads both alike.

Fields without a key in nvme-cli are added under the specification's name. tests/interop compares key by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nvmeof.host.cli.options import transport_name
from nvmeof.host.discovery import DiscoveryEntry
from nvmeof.spec.discovery import Eflags
from nvmeof.spec.enums import Adrfam, AnaState, SecType, SubType, Treq
from nvmeof.spec.log_pages import AnaGroup

UNKNOWN = "unrecognized"
_FAMILIES = {
    Adrfam.PCI: "pci", Adrfam.IPV4: "ipv4", Adrfam.IPV6: "ipv6", Adrfam.IB: "infiniband", Adrfam.FC: "fibre-channel",
}  # fmt: skip
_SUBTYPES = {
    SubType.REFERRAL: "discovery subsystem referral",
    SubType.NVM: "nvme subsystem",
    SubType.CURRENT_DISCOVERY: "current discovery subsystem",
}
_TREQ = {
    Treq.NOT_SPECIFIED: "not specified",
    Treq.SECURE_CHANNEL_REQUIRED: "required",
    Treq.SECURE_CHANNEL_NOT_REQUIRED: "not required",
}
_EFLAGS = (
    (Eflags.EXPLICIT_PERSISTENT_CONNECTION, "explicit discovery connections"),
    (Eflags.DUPLICATE_RETURNED_INFORMATION, "duplicate discovery information"),
    (Eflags.NO_CDC, "no cdc connectivity"),
)
_SECTYPES = {SecType.NONE: "none", SecType.TLS_1_2: "tls", SecType.TLS_1_3: "tls13"}


def treq_text(treq: int) -> str:
    """Describe TREQ: the secure channel that it requires, and whether SQ flow control may be disabled."""
    name = _TREQ.get(Treq(treq & 3)) if treq & 3 < 3 and treq < 8 else None
    if name is None:
        return UNKNOWN
    return f"{name}, sq flow control disable supported" if treq & Treq.DISABLE_SQ_FLOW_CONTROL else name


def eflags_text(eflags: int) -> str:
    """Describe the flags of a discovery entry."""
    if eflags & ~sum(flag for flag, _ in _EFLAGS):
        return UNKNOWN
    return ", ".join(text for flag, text in _EFLAGS if eflags & flag) or "none"


def sectype_text(sectype: int) -> str:
    """Say which security a TCP port has: none, tls (1.2), tls13."""
    return _named(_SECTYPES, sectype)


def _named(names: Mapping[Any, str], value: int) -> str:
    return names.get(value, UNKNOWN)


def discovery_record(entry: DiscoveryEntry) -> dict[str, Any]:
    """Return a record of ``discover``. TRTYPE 4 is "mptcp", where nvme-cli reports an unknown type."""
    return {
        "trtype": transport_name(entry),
        "adrfam": _named(_FAMILIES, entry.adrfam),
        "subtype": _named(_SUBTYPES, entry.subtype),
        "treq": treq_text(entry.treq),
        "portid": entry.portid,
        "trsvcid": entry.trsvcid,
        "subnqn": entry.subnqn,
        "traddr": entry.traddr,
        "eflags": eflags_text(entry.eflags),
        "sectype": sectype_text(entry.sectype),
        "cntlid": entry.cntlid,
        "prottype": entry.prottype,
    }


def identify_controller(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``id-ctrl`` from the decoded Identify Controller. Text keeps its blanks, as in nvme-cli."""
    shown = {_CONTROLLER.get(name, name): value for name, value in info.items() if name not in ("psd", "vs")}
    for name, width in (("sn", 20), ("mn", 40), ("fr", 8)):
        shown[name] = str(shown[name]).ljust(width)
    shown["ieee"] = int.from_bytes(info["ieee"], "little")
    guid = bytes(info["fguid"]).hex()
    shown["fguid"] = "-".join((guid[:8], guid[8:12], guid[12:16], guid[16:20], guid[20:]))
    shown["cirn"] = bytes(info["cirn"]).hex()
    shown["psds"] = [_power_state(each) for each in info["psd"][: info["npss"] + 1]]
    return shown


_CONTROLLER = {"cdfs": "ocfs"}


def _power_state(state: Mapping[str, Any]) -> dict[str, int]:
    return {
        "max_power": state["mp"],
        "max_power_scale": state["flags"] & 1,
        "non-operational_state": state["flags"] >> 1 & 1,
        "entry_lat": state["enlat"],
        "exit_lat": state["exlat"],
        "read_tput": state["rrt"] & 0x1F,
        "read_lat": state["rrl"] & 0x1F,
        "write_tput": state["rwt"] & 0x1F,
        "write_lat": state["rwl"] & 0x1F,
        "idle_power": state["idlp"],
        "idle_scale": state["ips"] >> 6,
        "active_power": state["actp"],
        "active_power_work": state["apws"] & 7,
        "active_scale": state["apws"] >> 6,
        "emerg_power_fail_recover_time": state["epfrt"],
        "emerg_power_fail_recover_scale": state["epfrts_fqvts"] & 0xF,
        "force_quiesce_vault_time": state["fqvt"],
        "force_quiesce_vault_scale": state["epfrts_fqvts"] >> 4 & 0xF,
        "emerg_power_fail_vault_time": state["epfvt"],
        "emerg_power_fail_vault_scale": state["epfvts"] & 0xF,
    }


def identify_namespace(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``id-ns`` from the decoded Identify Namespace. ``nguid`` and ``eui64`` in hexadecimal digits."""
    shown = {name: value for name, value in info.items() if name not in ("lbaf", "vs")}
    shown["nguid"], shown["eui64"] = bytes(info["nguid"]).hex(), bytes(info["eui64"]).hex()
    formats = info["lbaf"][: info["nlbaf"] + info["nulbaf"] + 1]
    shown["lbafs"] = [{"ms": each["ms"], "ds": each["lbads"], "rp": each["rp"]} for each in formats]
    shown["vs"] = _text_lines(bytes(info["vs"]).rstrip(b"\0"))
    return shown


def _text_lines(data: bytes) -> list[str]:
    """Return sixteen characters per line, a dot for what is not printable: nvme-cli's form of vendor's bytes."""
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return [text[start : start + 16] for start in range(0, len(text), 16)]


_SMART = {
    "critical_warning": "critical_warning",
    "composite_temperature": "temperature",
    "available_spare": "avail_spare",
    "available_spare_threshold": "spare_thresh",
    "percentage_used": "percent_used",
    "endurance_group_critical_warning": "endurance_grp_critical_warning_summary",
    "error_log_entries": "num_err_log_entries",
    "warning_temperature_time": "warning_temp_time",
    "critical_temperature_time": "critical_comp_time",
    "tmt1_transitions": "thm_temp1_trans_count",
    "tmt2_transitions": "thm_temp2_trans_count",
    "tmt1_time": "thm_temp1_total_time",
    "tmt2_time": "thm_temp2_total_time",
}


def smart_log(log: Mapping[str, Any]) -> dict[str, int]:
    """Return ``smart-log``: temperatures in kelvin, data units of 1000 blocks of 512 bytes, as in the log."""
    shown: dict[str, int] = {}
    for name, value in log.items():
        if name == "temperature_sensors":
            shown |= {f"temperature_sensor_{number}": each for number, each in enumerate(value, 1) if each}
        else:
            shown[_SMART.get(name, name)] = value
    return shown


def error_entry(entry: Mapping[str, Any]) -> dict[str, int]:
    """Return an entry of ``error-log``. ``status_field`` is without the phase tag."""
    return {
        "error_count": entry["error_count"],
        "sqid": entry["sqid"],
        "cmdid": entry["cid"],
        "status_field": entry["status"] >> 1,
        "phase_tag": entry["status"] & 1,
        "parm_error_location": entry["parameter_error_location"],
        "lba": entry["lba"],
        "nsid": entry["nsid"],
        "vs": entry["vs"],
        "trtype": entry["trtype"],
        "csi": entry["csi"],
        "opcode": entry["opcode"],
        "cs": entry["cs"],
        "trtype_spec_info": entry["trtype_specific"],
        "log_page_version": entry["log_page_version"],
    }


def ana_state_name(state: int) -> str:
    """Return the name of an ANA state as nvme-cli writes it."""
    try:
        return AnaState(state).name.lower().replace("_", "-")
    except ValueError:
        return "invalid state"


def ana_log(device: str, chgcnt: int, groups: Iterable[AnaGroup]) -> dict[str, Any]:
    """Return ``ana-log``. The keys are nvme-cli's: capital, one with a blank at its end."""
    listed = list(groups)
    return {
        "Asymmetric Namespace Access Log for NVMe device": device,
        "chgcnt": chgcnt,
        "ngrps": len(listed),
        "ANA DESC LIST ": [
            {
                "grpid": each.grpid,
                "nnsids": len(each.nsids),
                "chgcnt": each.chgcnt,
                "state": ana_state_name(each.state),
                "NSIDS": [{"nsid": nsid} for nsid in each.nsids],
            }
            for each in listed
        ],
    }
