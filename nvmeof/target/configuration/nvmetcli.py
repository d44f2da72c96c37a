"""nvmetcli's JSON, such as ``/etc/nvmet/config.json``, and the document of :mod:`nvmeof.target.document`.

What nvmetcli saves are the writable attributes of the kernel's configfs, by their groups: ``attr_serial`` of a
subsystem is ``{"attr": {"serial": …}}`` (``nvmet/nvme.py`` of nvmetcli, ``drivers/nvme/target/configfs.c`` of Linux).
All attributes are texts there, but for numbers that are a node's own: ``enable``, ``nsid``, ``ana_grpid``, ``portid``,
``grpid``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.json_places import Place
from nvmeof.target.document import VERSION, Document
from nvmeof.target.storage.namespace_text import Element, NamespaceText, format_namespace_text, parse_namespace_text

_TRANSPORTS: Final = ("tcp", "mptcp")
_STATES: Final = frozenset({"optimized", "non-optimized", "inaccessible", "persistent-loss", "change"})
_DHCHAP: Final = ("key", "ctrl_key", "hash", "dhgroup")
_SUBSYSTEM_ATTRIBUTES: Final = {
    "serial": "serial",
    "model": "model",
    "firmware": "firmware",
    "cntlid_min": "cntlid_min",
    "cntlid_max": "cntlid_max",
    "qid_max": "max_io_queues",
}
"""The attributes of a subsystem that the document has too, by its names."""
_NUMBERS: Final = frozenset({"cntlid_min", "cntlid_max", "qid_max"})
_NO_OTHERS: Final = frozenset({"allow_any_host", "version", "ieee_oui", "pi_enable"})
"""Attributes that say nothing to this target: the version it implements is its own."""


class PlaceError(ConfigurationError):
    """A value in a configuration file that cannot be used, and its place."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


def is_nvmetcli(document: object) -> bool:
    """Return whether a document has nvmetcli's form: subsystems with namespaces that have a device, ports with an
    address."""
    if not isinstance(document, Mapping) or "version" in document:
        return False
    return all(isinstance(document.get(name, []), list) for name in ("hosts", "ports", "subsystems"))


class _Node:
    """One object of nvmetcli's document, with its place."""

    def __init__(self, value: Any, place: Place) -> None:
        if not isinstance(value, Mapping):
            raise PlaceError(place, f"{_words(place)} is an object, not {value!r}")
        self.value = value
        self.place = place

    def fail(self, name: str, wanted: str, value: object) -> PlaceError:
        """Make the error of an entry that is not what it should be."""
        place = (*self.place, name)
        return PlaceError(place, f"{_words(place)} is {wanted}, not {value!r}")

    def nodes(self, name: str) -> list[_Node]:
        """Return the objects of a list; none where there is no list."""
        value = self.value.get(name, [])
        if not isinstance(value, list):
            raise self.fail(name, "a list", value)
        return [_Node(each, (*self.place, name, index)) for index, each in enumerate(value)]

    def node(self, name: str) -> _Node:
        """Return an object; an empty one where there is none."""
        return _Node(self.value.get(name, {}), (*self.place, name))

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; a number counts as one. Raises `PlaceError` where it is missing and has no default."""
        value = self.value.get(name, default)
        if value is None:
            raise PlaceError(self.place, f"{_words(self.place)} has no {name}: it must be given")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.fail(name, "a text", value)
        return str(value).strip()

    def number(self, name: str, default: int | None = None) -> int:
        """Return a number, which may be written as a text."""
        text = self.text(name, None if default is None else str(default))
        try:
            return int(text, 0)
        except ValueError:
            raise self.fail(name, "a number", text) from None


def _words(place: Place) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the file"


def from_nvmetcli(document: Mapping[str, Any]) -> tuple[Document, list[str]]:
    """Return the document that nvmetcli's stands for, and a sentence for each thing of it that is left out.

    Raises `PlaceError` for a value that cannot be used.
    """
    root, remarks = _Node(document, ()), list[str]()
    keys = {host.text("nqn"): _host_keys(host) for host in root.nodes("hosts")}
    inline = _inline_bytes(root, remarks)
    subsystems = [_subsystem(node, keys, inline, remarks) for node in root.nodes("subsystems")]
    ports = [port for node in root.nodes("ports") if (port := _port(node, remarks)) is not None]
    return {"version": VERSION, "subsystems": subsystems, "ports": ports}, remarks


def _host_keys(host: _Node) -> Document:
    """Read a host's DH-HMAC-CHAP attributes, as a group or by their names in configfs; nvmetcli 0.8 saves none."""
    group = host.node("dhchap")
    found = {}
    for name in _DHCHAP:
        text = group.text(name, host.text(f"dhchap_{name}", ""))
        if text and not (name == "hash" and text == "none"):
            found[f"dhchap_{name}"] = text
    return found if "dhchap_key" in found else {}


def _subsystem(node: _Node, keys: Mapping[str, Document], inline: int | None, remarks: list[str]) -> Document:
    nqn, attributes = node.text("nqn"), node.node("attr")
    made: Document = {"nqn": nqn}
    for name in attributes.value:
        ours = _SUBSYSTEM_ATTRIBUTES.get(name)
        if ours is not None:
            made[ours] = attributes.number(name) if name in _NUMBERS else attributes.text(name)
        elif name not in _NO_OTHERS:
            remarks.append(f"{nqn}: the attribute {name} is left out: this target has no such setting")
    hosts = [_host_name(node, index, each) for index, each in enumerate(node.value.get("allowed_hosts", []))]
    if attributes.text("allow_any_host", "0") not in ("1", "Y", "y"):
        made["hosts"] = hosts
    with_keys = {name: found for name in (hosts or keys) if (found := keys.get(name))}
    if with_keys:
        made["host_keys"] = with_keys
    if inline is not None:
        made["incapsule_bytes"] = inline
    if node.value.get("passthru"):
        remarks.append(f"{nqn}: passthru is left out: this target has no NVMe device to pass commands to")
    made["namespaces"] = [found for each in node.nodes("namespaces") if (found := _namespace(each, nqn, remarks))]
    return made


def _host_name(node: _Node, index: int, value: object) -> str:
    if not isinstance(value, str):
        raise PlaceError((*node.place, "allowed_hosts", index), f"an allowed host is an NQN, not {value!r}")
    return value


def _namespace(node: _Node, nqn: str, remarks: list[str]) -> Document | None:
    nsid, device = node.number("nsid"), node.node("device")
    if not node.number("enable", 0):
        remarks.append(f"{nqn}: namespace {nsid} is left out: it is not enabled")
        return None
    made: Document = {
        "nsid": nsid,
        "storage": format_namespace_text(NamespaceText(Element("file", device.text("path")))),
    }
    for name in ("uuid", "nguid"):
        text = device.text(name, "")
        try:
            identifier = uuid.UUID(text) if text else None
        except ValueError:
            raise device.fail(name, "a UUID", text) from None
        if identifier is not None and identifier.int:
            made[name] = str(identifier) if name == "uuid" else identifier.hex
    group = node.number("ana_grpid", node.node("ana").number("grpid", 1))
    if group != 1:
        made["anagrpid"] = group
    return made


def _inline_bytes(root: _Node, remarks: list[str]) -> int | None:
    """Return the in-capsule size of the ports: one for all here, so the smallest. None: it is not set."""
    sizes = {port.node("param").number("inline_data_size", -1) for port in root.nodes("ports")} - {-1}
    if len(sizes) > 1:
        remarks.append(f"the ports have several inline_data_size: {min(sizes)} is used on all of them")
    return min(sizes) // 16 * 16 if sizes else None


def _port(node: _Node, remarks: list[str]) -> Document | None:
    portid, address = node.number("portid"), node.node("addr")
    transport = address.text("trtype", "")
    if transport not in _TRANSPORTS:
        remarks.append(
            f"port {portid} is left out: its transport is {transport or 'not given'}; tcp and mptcp are here"
        )
        return None
    made: Document = {
        "portid": portid,
        "transport": transport,
        "host": address.text("traddr"),
        "port": address.number("trsvcid", 4420),
        "subsystems": [_host_name(node, index, each) for index, each in enumerate(node.value.get("subsystems", []))],
    }
    if address.text("tsas", "none") not in ("none", "") or address.text("treq", "") == "required":
        made["tls"] = "required" if address.text("treq", "") == "required" else "allowed"
        remarks.append(f"port {portid} uses TLS, whose keys are in no file of nvmetcli: give the subsystem tls_keys")
    states = {}
    for group in node.nodes("ana_groups"):
        state = group.node("ana").text("state", "optimized")
        if state not in _STATES:
            raise group.node("ana").fail("state", "an ANA state", state)
        states[str(group.number("grpid"))] = state
    different = {group: state for group, state in states.items() if state != "optimized"}
    if different:
        made["ana"] = different
    referrals = [found for each in node.nodes("referrals") if (found := _referral(each, portid, remarks))]
    if referrals:
        made["referrals"] = referrals
    return made


def _referral(node: _Node, portid: int, remarks: list[str]) -> Document | None:
    address = node.node("addr")
    transport, name = address.text("trtype", ""), node.text("name", "")
    if transport not in (*_TRANSPORTS, "rdma"):
        remarks.append(f"port {portid}: the referral {name} is left out: its transport is {transport or 'not given'}")
        return None
    where = {"traddr": address.text("traddr"), "trsvcid": address.number("trsvcid", 8009)}
    return {"name": name, "transport": transport, **where}


# -- writing -----------------------------------------------------------------------------------------------------------


def to_nvmetcli(document: Document) -> tuple[Document, list[str]]:
    """Return a document in nvmetcli's form, and a sentence for each setting that it has no place for.

    Raises `ConfigurationError` for a namespace that is no file or device: the kernel serves no other.
    """
    remarks: list[str] = []
    subsystems, ports = document["subsystems"], document["ports"]
    nqns = [each["nqn"] for each in subsystems]
    hosts = dict.fromkeys(
        nqn for each in subsystems for nqn in (*(each.get("hosts") or ()), *each.get("host_keys", {}))
    )
    keys = {nqn: found for each in subsystems for nqn, found in each.get("host_keys", {}).items()}
    sizes = [each["incapsule_bytes"] for each in subsystems if "incapsule_bytes" in each]
    return {
        "hosts": [_host_out(nqn, keys.get(nqn)) for nqn in hosts],
        "ports": [_port_out(each, nqns, min(sizes, default=None), remarks) for each in ports],
        "subsystems": [_subsystem_out(each, remarks) for each in subsystems],
    }, remarks


def _host_out(nqn: str, keys: Document | None) -> Document:
    attributes = {name.removeprefix("dhchap_"): value for name, value in (keys or {}).items()}
    return {"nqn": nqn, **({"dhchap": attributes} if attributes else {})}


def _left_out(what: str, entries: Iterable[str], known: Iterable[str], remarks: list[str]) -> None:
    remarks += [
        f"{what}: {name} is left out: nvmetcli's file has no place for it" for name in set(entries) - set(known)
    ]


def _subsystem_out(subsystem: Document, remarks: list[str]) -> Document:
    nqn, hosts = subsystem["nqn"], subsystem.get("hosts")
    known = ("nqn", "hosts", "host_keys", "any_host", "namespaces", "incapsule_bytes", *_SUBSYSTEM_ATTRIBUTES.values())
    _left_out(nqn, subsystem, known, remarks)
    attributes = {name: str(subsystem[ours]) for name, ours in _SUBSYSTEM_ATTRIBUTES.items() if ours in subsystem}
    anyone = hosts is None or subsystem.get("any_host", False)
    if anyone and hosts:
        remarks.append(f"{nqn}: any host may use it, so that the hosts that it lists are left out")
    return {
        "nqn": nqn,
        "attr": {"allow_any_host": str(int(anyone)), **attributes},
        "allowed_hosts": [] if anyone else list(hosts or ()),
        "namespaces": [_namespace_out(each, nqn, remarks) for each in subsystem["namespaces"]],
    }


def _namespace_out(namespace: Document, nqn: str, remarks: list[str]) -> Document:
    storage = parse_namespace_text(namespace["storage"])
    if storage.backend.name != "file" or storage.filters:
        raise ConfigurationError(
            f"{nqn}: namespace {namespace.get('nsid')} is {namespace['storage']}: nvmetcli knows files and devices only"
        )
    what = f"{nqn}, namespace {namespace.get('nsid')}"
    _left_out(what, namespace, ("nsid", "storage", "uuid", "nguid", "anagrpid", "enabled"), remarks)
    _left_out(what, (name for name, _ in storage.backend.options), (), remarks)
    device = {"path": storage.backend.value}
    if "uuid" in namespace:
        device["uuid"] = namespace["uuid"]
    if "nguid" in namespace:
        device["nguid"] = str(uuid.UUID(hex=namespace["nguid"]))
    group = namespace.get("anagrpid", 1)
    enable = int(namespace.get("enabled", True))
    return {
        "nsid": namespace["nsid"],
        "enable": enable,
        "device": device,
        "ana_grpid": group,
        "ana": {"grpid": str(group)},
    }


def _port_out(port: Document, nqns: list[str], inline: int | None, remarks: list[str]) -> Document:
    known = ("portid", "transport", "host", "port", "subsystems", "ana", "referrals", "advertise_as", "tls")
    _left_out(f"port {port.get('portid')}", port, known, remarks)
    states = {"1": "optimized", **port.get("ana", {})}
    return {
        "portid": port["portid"],
        "addr": {
            **_address_out(port["transport"], port["host"], port["port"]),
            **_TLS_ADDRESS.get(port.get("tls", "off"), {}),
        },
        "param": {} if inline is None else {"inline_data_size": str(inline)},
        "subsystems": list(nqns if port.get("subsystems") is None else port["subsystems"]),
        "ana_groups": [{"grpid": int(group), "ana": {"state": state}} for group, state in states.items()],
        "referrals": [
            {
                "name": each.get("name") or f"referral-{index}",
                "addr": _address_out(each.get("transport", "tcp"), each["traddr"], each.get("trsvcid", 8009)),
            }
            for index, each in enumerate(port.get("referrals", ()))
        ],
    }


_TLS_ADDRESS: Final = {
    "allowed": {"treq": "not required", "tsas": "tls1.3"},
    "required": {"treq": "required", "tsas": "tls1.3"},
}
"""What nvmet's attributes of a port say of TLS; its keys are in a keyring of the kernel."""


def _address_out(transport: str, host: str, port: int) -> Document:
    family = "ipv6" if ":" in host else "ipv4"
    return {"trtype": transport, "adrfam": family, "traddr": host, "trsvcid": str(port), "treq": "not specified"}
