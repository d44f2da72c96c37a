"""Which controllers make one subsystem, and which namespaces are the same one.

Source: nvme_init_subsystem, nvme_validate_cntlid, nvme_init_ns_head, nvme_ns_ids_equal and nvme_is_unique_nsid of
drivers/nvme/host (Linux 6.12). Beyond Linux, which compares the NQN alone, controllers of one subsystem have one serial
number and one model number (NVMe Base, Identify Controller: SN and MN are the subsystem's).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import NvmeofError, NvmeStatusError
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.results import IdentifyController, IdentifyNamespace
from nvmeof.spec.enums import Cmic, Csi, Ctratt, NamespaceIdType, Nmic, Oacs
from nvmeof.spec.identify_namespace import format_index


class PathMismatchError(NvmeofError):
    """A controller, or its view of a namespace, contradicts the other paths of its subsystem."""


@dataclass(frozen=True, slots=True)
class SubsystemIdentity:
    """The values that all controllers of a subsystem have in common."""

    subnqn: str
    serial: str
    model: str

    @classmethod
    def of(cls, subnqn: str, info: IdentifyController) -> SubsystemIdentity:
        """Take the identity from Identify Controller."""
        return cls(subnqn, info.sn.strip(), info.mn.strip())


def check_controller(
    identity: SubsystemIdentity, known: SubsystemIdentity | None, info: IdentifyController, others: Iterable[int]
) -> None:
    """Check that a controller belongs to a subsystem (NVMe Base, Identify Controller).

    ``known``: the subsystem as its first controller had it; None for the first. ``others``: CNTLIDs of its controllers
    with an association. Raises :class:`PathMismatchError`, one sentence.
    """
    if known is not None and identity != known:
        what, theirs, ours = next(
            (what, theirs, ours)
            for what, theirs, ours in (
                ("belongs to the subsystem", identity.subnqn, known.subnqn),
                ("has the serial number", identity.serial, known.serial),
                ("has the model number", identity.model, known.model),
            )
            if theirs != ours
        )
        raise PathMismatchError(
            f"controller {info.cntlid:#x} {what} {theirs!r}, the other paths of {known.subnqn} {ours!r}: "
            "they are not one subsystem"
        )
    for cntlid in others:
        if cntlid == info.cntlid:
            raise PathMismatchError(
                f"two paths of {identity.subnqn} have the controller identifier {cntlid:#x}: update the target"
            )
        if not info.cmic & Cmic.MULTIPLE_CONTROLLERS:
            raise PathMismatchError(
                f"{identity.subnqn} does not support multiple controllers (CMIC {info.cmic:#x}): it can have one path"
            )


# -- namespaces


_NO_ID: Final = ""


@dataclass(frozen=True, slots=True)
class NamespaceIds:
    """The identifiers of a namespace in hexadecimal digits, empty where it has none, and its CSI."""

    nguid: str = _NO_ID
    uuid: str = _NO_ID
    eui64: str = _NO_ID
    csi: int = 0

    def difference(self, other: NamespaceIds) -> str | None:
        """Say how ``other`` differs, for a sentence; None where the two are equal."""
        for name in ("nguid", "uuid", "eui64"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name.upper()} {theirs or 'none'} in place of {ours or 'none'}"
        if self.csi != other.csi:
            return f"command set {other.csi} in place of {self.csi}"
        return None

    def shared_with(self, other: NamespaceIds) -> str | None:
        """Return the name of an identifier that two different namespaces share; None where they share none.

        nvme_subsys_check_duplicate_ids.
        """
        for name in ("uuid", "nguid", "eui64"):
            if getattr(self, name) and getattr(self, name) == getattr(other, name):
                return f"{name.upper()} {getattr(self, name)}"
        return None


@dataclass(frozen=True, slots=True)
class NamespaceView:
    """A namespace as one controller shows it."""

    nsid: int
    ids: NamespaceIds
    shared: bool
    anagrpid: int
    size_blocks: int
    block_bytes: int
    metadata_bytes: int


async def view_namespace(commands: AdminCommands, nsid: int) -> NamespaceView | None:
    """Identify a namespace through one controller; None where it is not active. Raises what commands raise."""
    info = await commands.identify_namespace(nsid)
    if not info.nsze:
        return None
    lba_format = info.lbaf[format_index(info.flbas)]
    return NamespaceView(
        nsid=nsid,
        ids=await _identifiers(commands, nsid, info),
        shared=bool(info.nmic & Nmic.SHARED),
        anagrpid=info.anagrpid,
        size_blocks=info.nsze,
        block_bytes=1 << lba_format.lbads,
        metadata_bytes=lba_format.ms,
    )


async def _identifiers(commands: AdminCommands, nsid: int, info: IdentifyNamespace) -> NamespaceIds:
    found = {"nguid": _present(bytes(info.nguid)), "eui64": _present(bytes(info.eui64)), "uuid": _NO_ID}
    csi: int = Csi.NVM
    try:
        descriptors = await commands.namespace_descriptors(nsid)
    except NvmeStatusError:
        descriptors = []  # the data structure is younger (NVMe 1.3) than the fields of Identify Namespace
    for each in descriptors:
        if each.nidt == NamespaceIdType.CSI:
            csi = each.nid[0] if each.nid else csi
        elif each.nidt in _FIELDS:
            found[_FIELDS[NamespaceIdType(each.nidt)]] = _present(each.nid)
    return NamespaceIds(**found, csi=csi)


_FIELDS: Final = {NamespaceIdType.EUI64: "eui64", NamespaceIdType.NGUID: "nguid", NamespaceIdType.UUID: "uuid"}


def _present(identifier: bytes) -> str:
    return identifier.hex() if any(identifier) else _NO_ID


def nsid_is_unique(shared: bool, info: IdentifyController) -> bool:
    """Return whether an NSID means one namespace in the whole subsystem (nvme_is_unique_nsid; NVMe Base 3.2.1.6).

    Private namespaces of different controllers may have the same NSID where the controller has none of the three
    capabilities.
    """
    return bool(
        shared
        or info.oacs & Oacs.NAMESPACE_MANAGEMENT
        or info.cmic & Cmic.ANA_REPORTING
        or info.ctratt & Ctratt.NVM_SETS
    )


def check_same_namespace(known: NamespaceView, view: NamespaceView, where: str) -> None:
    """Check that an NSID of ``where`` (a controller, for the message) is the same namespace as on other controllers.

    Raises :class:`PathMismatchError`, one sentence.
    """
    if not (known.shared and view.shared):
        raise PathMismatchError(
            f"{where} has a namespace {view.nsid} as other controllers of the subsystem have, "
            "which is not shared (NMIC)"
        )
    difference = known.ids.difference(view.ids)
    if difference is not None:
        raise PathMismatchError(
            f"{where} has another namespace behind NSID {view.nsid} than the other paths ({difference})"
        )
    if (known.block_bytes, known.metadata_bytes) != (view.block_bytes, view.metadata_bytes):
        raise PathMismatchError(
            f"{where} shows namespace {view.nsid} with blocks of {view.block_bytes} bytes, "
            f"the other paths with {known.block_bytes}"
        )


def check_new_namespace(view: NamespaceView, others: Iterable[NamespaceView], where: str) -> None:
    """Check that no other namespace of the subsystem has an identifier of a new one. Raises PathMismatchError."""
    for other in others:
        common = view.ids.shared_with(other.ids)
        if common is not None:
            raise PathMismatchError(f"{where} has a namespace {view.nsid} with the {common} of namespace {other.nsid}")
