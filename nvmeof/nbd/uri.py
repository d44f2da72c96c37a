"""NBD URIs: ``nbd://host:port/export``, ``nbd+unix:///export?socket=PATH``, and with TLS ``nbds`` (NBD project,
``doc/uri.md``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from nvmeof.address import Address
from nvmeof.errors import ConfigurationError
from nvmeof.nbd.numbers import NBD_PORT

_SCHEMES: Final = {
    "nbd": (False, False),
    "nbds": (True, False),
    "nbd+unix": (False, True),
    "nbds+unix": (True, True),
}
_EXAMPLES: Final = "nbd://192.0.2.1/export or nbd+unix:///export?socket=/run/nbd.sock"


@dataclass(frozen=True, slots=True)
class NbdUri:
    """Where an export is. ``path``: of a Unix socket, else None; ``parameters``: those of the query except socket."""

    export: str = ""
    host: str = "localhost"
    port: int = NBD_PORT
    path: str | None = None
    tls: bool = False
    parameters: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def parse(cls, text: str) -> NbdUri:
        """Read a URI. Raises `ConfigurationError` that says what is wrong with it."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{text!r} is no NBD URI: {error}; write {_EXAMPLES}") from None
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(f"{text!r} is no NBD URI: it begins with none of {', '.join(_SCHEMES)}; "
                                     f"write {_EXAMPLES}")  # fmt: skip
        tls, unix = _SCHEMES[parts.scheme]
        if parts.fragment:
            raise ConfigurationError(f"{text!r} has a fragment (#{parts.fragment}), which means nothing in an NBD URI")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        path = query.pop("socket", None)
        export = unquote(parts.path.removeprefix("/"))
        parameters = tuple(query.items())
        if unix:
            if not path:
                raise ConfigurationError(f"{text!r} names no socket; write ?socket=/PATH behind it")
            if parts.netloc:
                raise ConfigurationError(f"{text!r} has a host and a socket; write three slashes: {parts.scheme}:///")
            return cls(export, path=path, tls=tls, parameters=parameters)
        if path is not None:
            raise ConfigurationError(f"{text!r} names a socket; write {parts.scheme}+unix: for one")
        host = parts.hostname or "localhost"
        return cls(export, host, NBD_PORT if port is None else port, None, tls, parameters)

    @property
    def where(self) -> str:
        """The address, for messages."""
        return self.path if self.path is not None else str(Address(self.host, self.port))

    def __str__(self) -> str:
        name = quote(self.export)
        query = [*((("socket", self.path),) if self.path is not None else ()), *self.parameters]
        tail = "?" + "&".join(f"{key}={quote(value, safe='/')}" for key, value in query) if query else ""
        scheme = "nbds" if self.tls else "nbd"
        if self.path is not None:
            return f"{scheme}+unix:///{name}{tail}"
        return f"{scheme}://{Address(self.host, self.port)}/{name}{tail}"
