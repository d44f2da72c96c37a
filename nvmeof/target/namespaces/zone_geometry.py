"""The zones of a zoned namespace as they are configured."""

from __future__ import annotations

from dataclasses import dataclass

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size, parse_size
from nvmeof.spec.zns import EXTENSION_UNIT_BYTES

DEFAULT_ZONE_BYTES = 64 << 20
ZONES_MAX = 1 << 20
_WORD = "zoned"
_SIZES = ("zone-size", "zone-capacity", "zdes")
_NUMBERS = ("max-open", "max-active")
_FLAG = "read-across"
ZONED_WORDS = (_WORD, *_SIZES, *_NUMBERS, _FLAG)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneGeometry:
    """Zones of `zone_bytes` each: ``NamespaceConfig(backend=..., zoned=ZoneGeometry(zone_bytes=64 << 20))``.

    `capacity_bytes`: the part of a zone that can be written (None: all).

    `max_open`, `max_active`: how many zones may be open, and open or closed (0: any number). `extension_bytes`: of a
    zone descriptor extension, a multiple of 64. `read_across`: a Read may go from one zone into the next.
    Linux takes zones of a power of two only.
    """

    zone_bytes: int = DEFAULT_ZONE_BYTES
    capacity_bytes: int | None = None
    max_open: int = 0
    max_active: int = 0
    extension_bytes: int = 0
    read_across: bool = True

    def __post_init__(self) -> None:
        if self.zone_bytes < 1:
            raise ConfigurationError(f"a zone has more than {self.zone_bytes} bytes")
        if not 1 <= self.capacity <= self.zone_bytes:
            raise ConfigurationError(f"a zone of {self.zone_bytes} bytes cannot hold {self.capacity_bytes}")
        if self.max_open < 0 or self.max_active < 0:
            raise ConfigurationError("a limit of open or active zones is not negative; 0 is none")
        if self.max_active and self.max_open > self.max_active:
            raise ConfigurationError(f"open zones are active: {self.max_open} of {self.max_active} cannot be open")
        if self.extension_bytes % EXTENSION_UNIT_BYTES or not 0 <= self.extension_bytes <= 255 * EXTENSION_UNIT_BYTES:
            raise ConfigurationError(
                f"a zone descriptor extension has a multiple of {EXTENSION_UNIT_BYTES} bytes up to "
                f"{255 * EXTENSION_UNIT_BYTES}, not {self.extension_bytes}"
            )

    @property
    def capacity(self) -> int:
        """Bytes that can be written per zone."""
        return self.zone_bytes if self.capacity_bytes is None else self.capacity_bytes

    def check(self, block_bytes: int, size_bytes: int) -> int:
        """Return the number of zones of a namespace of `size_bytes`. Raises `ConfigurationError` for a zone size or
        limits that do not fit."""
        for what, value in (("a zone size", self.zone_bytes), ("a zone capacity", self.capacity)):
            if value % block_bytes:
                raise ConfigurationError(f"{what} of {value} bytes is not a whole number of {block_bytes}-byte blocks")
        count = size_bytes // self.zone_bytes
        if count == 0:
            raise ConfigurationError(
                f"{format_size(size_bytes)} is not even one zone of {format_size(self.zone_bytes)}; "
                "make the zones smaller"
            )
        if count > ZONES_MAX:
            raise ConfigurationError(f"{count} zones are too many ({ZONES_MAX}): make them larger")
        return count

    @property
    def description(self) -> str:
        """A few words for a person."""
        text = f"zones of {format_size(self.zone_bytes)}"
        if self.capacity != self.zone_bytes:
            text += f" ({format_size(self.capacity)} usable)"
        for name, limit in (("open", self.max_open), ("active", self.max_active)):
            if limit:
                text += f", at most {limit} {name}"
        return text


def _number(key: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigurationError(f"{key} is a number, not {value!r}")
    return int(value)


def _known(word: str) -> bool:
    return word.partition("=")[0] in ZONED_WORDS


def parse_zoned(text: str) -> tuple[str, ZoneGeometry | None]:
    """Take `,zoned,zone-size=64M,zone-capacity=48M,max-open=8,max-active=12,zdes=64,read-across=no` off an option.

    Returns what stands before it, and None when nothing of zones follows. Raises `ConfigurationError`.
    """
    words = text.split(",")
    first = len(words)
    while first > 1 and _known(words[first - 1]):
        first -= 1
    if any(map(_known, words[1:first])):
        raise ConfigurationError(
            f"{words[first - 1]!r} is no word for a zoned namespace: one of {', '.join(ZONED_WORDS)}"
        )
    given: dict[str, str] = {}
    for word in words[first:]:
        key, sign, value = word.partition("=")
        if key in given or bool(sign) != (key != _WORD):
            raise ConfigurationError(f"{word!r}: write zoned, and zone-size=64M and the like, once each")
        given[key] = value
    rest = ",".join(words[:first])
    if not given:
        return rest, None
    if given.get("zdes") == "0":
        del given["zdes"]
    sizes = {key: parse_size(given[key]) for key in _SIZES if key in given}
    across = given.get(_FLAG, "yes")
    if across not in ("yes", "no"):
        raise ConfigurationError(f"{_FLAG} is yes or no, not {across!r}")
    return rest, ZoneGeometry(
        zone_bytes=sizes.get("zone-size", DEFAULT_ZONE_BYTES),
        capacity_bytes=sizes.get("zone-capacity"),
        extension_bytes=sizes.get("zdes", 0),
        max_open=_number("max-open", given.get("max-open", "0")),
        max_active=_number("max-active", given.get("max-active", "0")),
        read_across=across == "yes",
    )
