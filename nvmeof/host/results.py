"""Decoded data structures of a controller: mappings with the specification's field names, which are attributes too.

:meth:`HostController.identify` and similar methods return them. ``json.dumps`` takes them as they are: numbers, text,
and :class:`HexText` for fields that are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from nvmeof.spec.identify import IDENTIFY_CONTROLLER, IDENTIFY_CONTROLLER_NVM
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY, SMART_HEALTH, AnaGroup
from nvmeof.spec.media import LbaStatus
from nvmeof.spec.zns import IDENTIFY_NAMESPACE_ZNS
from nvmeof.wire import Buffer, Declaration


class HexText(str):
    """Bytes as their hexadecimal digits, in the order that they have in the structure; ``bytes()`` gives them back."""

    __slots__ = ()

    def __bytes__(self) -> bytes:
        return bytes.fromhex(self)

    def hex(self) -> str:
        """Return the digits, as ``bytes`` does."""
        return str(self)


Value: TypeAlias = "int | str | list[int] | list[Decoded] | Decoded"
"""The value of a field: a number, text, :class:`HexText`, or numbers or structures."""


class Decoded(dict[str, "Value"]):
    """A decoded structure: ``result.nsze`` and ``result["nsze"]`` are the same, and ``json.dumps`` takes it."""

    __slots__ = ()
    _DECLARATION: ClassVar[Declaration]
    _PARTS: ClassVar[Mapping[str, type[Decoded]]] = {}

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """Decode the structure at the beginning of ``data``. Raises ``construct.StreamError`` if it is too short."""
        return cls._of(cls._DECLARATION.parse(bytes(data)))

    @classmethod
    def size_bytes(cls) -> int:
        """Return the structure's length."""
        return cls._DECLARATION.sizeof()

    @classmethod
    def _of(cls, parsed: Mapping[str, Any]) -> Self:
        return cls((name, cls._value(name, value)) for name, value in parsed.items() if not name.startswith("_"))

    @classmethod
    def _value(cls, name: str, value: Any) -> Any:
        if isinstance(value, bytes):
            return HexText(value.hex())
        if isinstance(value, list):
            return [cls._value(name, each) for each in value]
        if isinstance(value, Mapping):
            return cls._PARTS.get(name, Decoded)._of(value)
        return value

    if not TYPE_CHECKING:  # a type checker knows the fields by their declarations, and finds a misspelt one

        def __getattr__(self, name: str) -> Value:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self)}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]


class PowerState(Decoded):
    """A power state descriptor of Identify Controller."""

    __slots__ = ()
    mp: int
    flags: int
    enlat: int
    exlat: int
    rrt: int
    rrl: int
    rwt: int
    rwl: int
    idlp: int
    ips: int
    actp: int
    apws: int
    epfrt: int
    fqvt: int
    epfvt: int
    epfrts_fqvts: int
    epfvts: int


class LbaFormat(Decoded):
    """An LBA format of Identify Namespace: metadata bytes, data size as a power of two, relative performance."""

    __slots__ = ()
    ms: int
    lbads: int
    rp: int


class IdentifyController(Decoded):
    """Identify Controller (CNS 01h, NVMe Base): the result of ``await controller.identify()``.

    Fields have the specification's names: ``info.sn`` or ``info["sn"]``. ``mdts``: a command transfers at most
    2 ** ``mdts`` pages of CAP.MPSMIN bytes; 0 for no limit.
    """

    __slots__ = ()
    _DECLARATION = IDENTIFY_CONTROLLER
    _PARTS = {"psd": PowerState}
    vid: int
    ssvid: int
    sn: str
    mn: str
    fr: str
    rab: int
    ieee: HexText
    cmic: int
    mdts: int
    cntlid: int
    ver: int
    rtd3r: int
    rtd3e: int
    oaes: int
    ctratt: int
    rrls: int
    bpcap: int
    nssl: int
    plsi: int
    cntrltype: int
    fguid: HexText
    crdt1: int
    crdt2: int
    crdt3: int
    crcap: int
    ciu: int
    cirn: HexText
    nvmsr: int
    vwci: int
    mec: int
    oacs: int
    acl: int
    aerl: int
    frmw: int
    lpa: int
    elpe: int
    npss: int
    avscc: int
    apsta: int
    wctemp: int
    cctemp: int
    mtfa: int
    hmpre: int
    hmmin: int
    tnvmcap: int
    unvmcap: int
    rpmbs: int
    edstt: int
    dsto: int
    fwug: int
    kas: int
    hctma: int
    mntmt: int
    mxtmt: int
    sanicap: int
    hmminds: int
    hmmaxd: int
    nsetidmax: int
    endgidmax: int
    anatt: int
    anacap: int
    anagrpmax: int
    nanagrpid: int
    pels: int
    domainid: int
    kpioc: int
    mptfawr: int
    megcap: int
    tmpthha: int
    cqt: int
    sqes: int
    cqes: int
    maxcmd: int
    nn: int
    oncs: int
    fuses: int
    fna: int
    vwc: int
    awun: int
    awupf: int
    icsvscc: int
    nwpc: int
    acwu: int
    cdfs: int
    sgls: int
    mnan: int
    maxdna: int
    maxcna: int
    oaqd: int
    rhiri: int
    hirt: int
    cmmrtd: int
    nmmrtd: int
    minmrtg: int
    maxmrtg: int
    trattr: int
    mcudmq: int
    mnsudmq: int
    mcmr: int
    nmcmr: int
    mcdqpc: int
    subnqn: str
    ioccsz: int
    iorcsz: int
    icdoff: int
    fcatt: int
    msdbd: int
    ofcs: int
    dctype: int
    ccrl: int
    psd: list[PowerState]
    vs: HexText


class IdentifyNamespace(Decoded):
    """Identify Namespace (CNS 00h, NVM Command Set): the result of ``await controller.identify_namespace(1)``.

    Fields have the specification's names. ``nsze``, ``ncap`` and ``nuse`` are logical blocks.
    """

    __slots__ = ()
    _DECLARATION = IDENTIFY_NAMESPACE
    _PARTS = {"lbaf": LbaFormat}
    nsze: int
    ncap: int
    nuse: int
    nsfeat: int
    nlbaf: int
    flbas: int
    mc: int
    dpc: int
    dps: int
    nmic: int
    rescap: int
    fpi: int
    dlfeat: int
    nawun: int
    nawupf: int
    nacwu: int
    nabsn: int
    nabo: int
    nabspf: int
    noiob: int
    nvmcap: int
    npwg: int
    npwa: int
    npdg: int
    npda: int
    nows: int
    mssrl: int
    mcl: int
    msrc: int
    kpios: int
    nulbaf: int
    kpiodaag: int
    anagrpid: int
    nsattr: int
    nvmsetid: int
    endgid: int
    nguid: HexText
    eui64: HexText
    lbaf: list[LbaFormat]
    vs: HexText


class LbaFormatExtension(Decoded):
    """An LBA format's zones: ``zsze``, a zone's size in logical blocks; ``zdes``, of its extension in 64 bytes."""

    __slots__ = ()
    zsze: int
    zdes: int


class IdentifyNamespaceZns(Decoded):
    """Identify Namespace of the Zoned Namespace Command Set (CNS 05h).

    ``mar``, ``mor``: 0's-based, FFFFFFFFh for no limit. ``rrl`` to ``frl3``: seconds.
    """

    __slots__ = ()
    _DECLARATION = IDENTIFY_NAMESPACE_ZNS
    _PARTS = {"lbafe": LbaFormatExtension}
    zoc: int
    ozcs: int
    mar: int
    mor: int
    rrl: int
    frl: int
    rrl1: int
    rrl2: int
    rrl3: int
    frl1: int
    frl2: int
    frl3: int
    numzrwa: int
    zrwafg: int
    zrwasz: int
    zrwacap: int
    lbafe: list[LbaFormatExtension]
    vs: HexText


@dataclass(frozen=True, slots=True)
class LbaStatusRange:
    """A range of blocks that may not be readable, of Get LBA Status. ``lba``, ``blocks``: logical blocks."""

    lba: int
    blocks: int
    status: LbaStatus


class NvmCommandSetLimits(Decoded):
    """Identify for the NVM command set (CNS 06h): limits as powers of two of CAP.MPSMIN pages, 0 for none."""

    __slots__ = ()
    _DECLARATION = IDENTIFY_CONTROLLER_NVM
    vsl: int
    wzsl: int
    wusl: int
    dmrl: int
    dmrsl: int
    dmsl: int
    kpiocap: int
    wzdsl: int
    aocs: int
    ver: int
    lbamqf: int


class SmartLog(Decoded):
    """SMART / Health Information (log page 02h): the result of ``await controller.smart_log()``.

    Fields have the specification's names. Temperatures are kelvin (``log.composite_temperature - 273``), data units
    1,000 times 512 bytes.
    """

    __slots__ = ()
    _DECLARATION = SMART_HEALTH
    critical_warning: int
    composite_temperature: int
    available_spare: int
    available_spare_threshold: int
    percentage_used: int
    endurance_group_critical_warning: int
    data_units_read: int
    data_units_written: int
    host_read_commands: int
    host_write_commands: int
    controller_busy_time: int
    power_cycles: int
    power_on_hours: int
    unsafe_shutdowns: int
    media_errors: int
    error_log_entries: int
    warning_temperature_time: int
    critical_temperature_time: int
    temperature_sensors: list[int]
    tmt1_transitions: int
    tmt2_transitions: int
    tmt1_time: int
    tmt2_time: int


@dataclass(frozen=True, slots=True)
class AnaLog:
    """The Asymmetric Namespace Access log (page 0Ch): the state of each group of namespaces on this path."""

    change_count: int
    groups: list[AnaGroup]


class ErrorLogEntry(Decoded):
    """An entry of the Error Information log (page 01h), from ``await controller.error_log()``.

    Fields have the specification's names. ``status``: as in the completion, phase bit included.
    """

    __slots__ = ()
    _DECLARATION = ERROR_INFORMATION_ENTRY
    error_count: int
    sqid: int
    cid: int
    status: int
    parameter_error_location: int
    lba: int
    nsid: int
    vs: int
    trtype: int
    csi: int
    opcode: int
    cs: int
    trtype_specific: int
    log_page_version: int
