"""Options that the commands share, under nvme-cli's names, and connecting with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from nvmeof.address import parse_port
from nvmeof.aio.runloop import run
from nvmeof.cli import interrupts
from nvmeof.cli.help import Command, GroupedOption
from nvmeof.cli.types import BYTES, SECONDS, U8, U32, IntegerType, Number
from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.host.cli import output as out
from nvmeof.host.cli.program import PROGRAM as PROGRAM
from nvmeof.host.cli.secrets import host_credentials, tls_credentials, wants_tls
from nvmeof.host.client import HostController, connect, discover, take_path_options
from nvmeof.host.config_files.saved import find_target, read_saved
from nvmeof.host.discovery import DiscoveryEntry
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.identity import host_identity
from nvmeof.host.namespace import Namespace
from nvmeof.host.offload.device import OFFLOAD
from nvmeof.host.options import ConnectOptions, distinct_paths
from nvmeof.host.url import TargetUrl
from nvmeof.security.tls.keylog import open_keylog
from nvmeof.spec.enums import DISCOVERY_NQN, NVME_PORT
from nvmeof.transport import get, set_trtype_code
from nvmeof.transport.paths.session import PathOptions

F = TypeVar("F", bound=Callable[..., Any])


class Port(IntegerType):
    """A port, decimal or hexadecimal with 0x."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_port(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


PORT = Port()


def _set_trtype_code(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        set_trtype_code("mptcp", value)


class HostCommand(Command):
    """A command of nvmeof-host: `connect` explains the options of the connection, the others name the rarer ones."""

    explained_by = f"{PROGRAM} connect --help"

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with ``where``, the paths that were given, if the command takes several."""
        given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if any(isinstance(each, Target) for each in self.params):
            take_target(ctx.params, given)
        ctx.meta[GIVEN] = frozenset(given)
        spread_paths(ctx.params)
        return super().invoke(ctx)


GIVEN = "nvmeof.given"
"""Key of ``ctx.meta``: the names of the options that stand on the command line, or in the URL that it names."""


def given_options() -> frozenset[str]:
    """Return the names of the options that stand on the command line, or in the URL that it names."""
    found: frozenset[str] = click.get_current_context().meta[GIVEN]
    return found


PATH_NAMES = ("traddr", "trsvcid", "transport", "host_traddr", "host_iface")
"""The options that distinguish the paths to a subsystem."""


class Target(click.Argument):
    """The positional TARGET: a URL, or the name of a saved connection. ``needed``: unless an address is given."""

    def __init__(self, declarations: Sequence[str], *, needed: bool) -> None:
        super().__init__(declarations, required=False, metavar="[TARGET]", shell_complete=complete_target)
        self.needed = needed


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the saved connections whose names begin with ``incomplete``."""
    try:
        return [name for name in read_saved() if name.startswith(incomplete)]
    except NvmeofError:
        return []


def take_target(params: dict[str, Any], given: set[str]) -> None:
    """Put what a URL says in place of the options that were not given. Raises ConfigurationError, UsageError."""
    text = params.pop("target", None)
    if text is None:
        if not params.get("traddr") and _needs_address():
            raise click.UsageError("Missing option '-a' / '--traddr', or a TARGET: a URL or a saved connection.")
        return
    if "traddr" in given:
        raise ConfigurationError(f"give the target once: {text}, or --traddr with its other options")
    found = options_of_url(find_target(text))
    if not isinstance(params.get("traddr"), tuple):
        if len(found["traddr"]) > 1:
            raise ConfigurationError(f"{text} has several paths: a discovery service is asked at one")
        found = {name: values[0] if name in PATH_NAMES else values for name, values in found.items()}
    for name, value in found.items():
        if name not in given:
            params[name] = value
            given.add(name)
    if {"io_timeout", "admin_timeout"} & found.keys() and "timeout" not in given:
        params["timeout"] = None


def _needs_address() -> bool:
    command = click.get_current_context().command
    return any(isinstance(each, Target) and each.needed for each in command.params)


def options_of_url(url: TargetUrl) -> dict[str, Any]:
    """Return a URL as the options of a command that takes several paths."""
    found: dict[str, Any] = {
        **url.options,
        "traddr": tuple(path.host for path in url.paths),
        "trsvcid": tuple(path.port or None for path in url.paths),
        "transport": (url.transport,),
    }
    for name, value in (("nqn", url.subnqn), ("nsid", url.nsid)):
        if value is not None:
            found[name] = value
    return found


def spread_paths(params: dict[str, Any]) -> None:
    """Put the paths of a command into ``params["where"]``, and the first one's values in place of the lists.

    An option that was given once holds for all paths; one that was given more often, for one path after the other.
    Raises :class:`ConfigurationError` where the numbers do not fit, and for a transport that does not exist.
    """
    if not isinstance(params.get("traddr"), tuple):
        return
    given = {name: params[name] for name in PATH_NAMES}
    count = max(len(values) for values in given.values())
    for name, values in given.items():
        if len(values) not in (0, 1, count):
            most = next(other for other in PATH_NAMES if len(given[other]) == count)
            one, other = (f"--{each.replace('_', '-')}" for each in (name, most))
            raise ConfigurationError(
                f"{one} was given {len(values)} times and {other} {count} times: "
                "give it once for all paths, or once for each"
            )
    for transport in given["transport"]:
        check_transport(transport)
    params["where"] = [
        {name: values[min(index, len(values) - 1)] if values else None for name, values in given.items()}
        for index in range(count)
    ]
    params.update(params["where"][0])


def check_transport(name: str) -> None:
    """Raise :class:`ConfigurationError` for what is neither a transport nor the offload device."""
    if name != OFFLOAD:
        try:
            get(name)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}, {OFFLOAD}") from None


def command(name: str) -> Callable[[Callable[..., Any]], HostCommand]:
    """Make a function a command of nvmeof-host."""
    return click.command(name, cls=HostCommand)


def _option(*declarations: Any, brief: bool = True, **attributes: Any) -> Callable[[F], F]:
    return click.option(*declarations, cls=GroupedOption, group="Connection", brief=brief, **attributes)


def _places(several: bool, *, required: bool = True, unless: str = "") -> tuple[Callable[[F], F], ...]:
    """Return the options of where to connect; ``several``: each option once for each path, or once for all; ``unless``:
    a default.
    """
    how: dict[str, Any] = {"multiple": several}
    addresses = "Address (fe80::1%eth0) or name." + (" Again, or other ports with -s: more paths." if several else "")
    if unless:
        addresses += f"  [default: {unless}]"
    return (
        click.argument("target", cls=Target, needed=required),
        _option("-a", "--traddr", brief=False, metavar="ADDR", help=addresses, **how),
        _option(
            "-s", "--trsvcid", brief=False, type=PORT, metavar="PORT",
            help="TCP port.  [default: 4420; discovery 8009]", **how,
        ),
        _option(
            "-t", "--transport", brief=False, default=("mptcp",) if several else "mptcp", show_default=True,
            metavar="NAME", help="mptcp, tcp or tcp_offload.", **how,
        ),
        _option("-w", "--host-traddr", metavar="ADDR", help="Local address to connect from.", **how),
        _option("-f", "--host-iface", metavar="IFACE", help="Local network interface to connect from.", **how),
    )  # fmt: skip


_TLS = _option("--tls", is_flag=True, help="TLS 1.3 with a pre-shared key.")
_TLS_MORE = (
    click.option("--tls-identity", type=click.Choice(["0", "1"]), hidden=True, help="Version of the PSK identity."),
    click.option("--tls-compat", is_flag=True, hidden=True, help="Derive keys as libnvme up to 1.14 does."),
    click.option("--tls-suites", metavar="NAME[,NAME...]", hidden=True, help="Cipher suites to offer."),
)
"""For targets of others: docs/howto/tls.md has them, and help does not."""
_CONNECTION = (
    _option("-q", "--hostnqn", metavar="NQN", help="Host NQN.  [default: /etc/nvme's, or our own]"),
    _option("-I", "--hostid", metavar="UUID", help="Host identifier, a UUID."),
    _option(
        "-S", "--dhchap-secret", metavar="SOURCE",
        help="Own secret: file:PATH, env:NAME or prompt.",
    ),
    _option("-C", "--dhchap-ctrl-secret", metavar="SOURCE", help="Secret that the controller has to prove."),
    _TLS,
    _option("--tls-key", "--tls_key", metavar="SOURCE", help="Its key: file:PATH, env:NAME or prompt."),
    _option("--concat", named=False, is_flag=True, help="Authentication makes that key."),
    _option("--tls-keylog", named=False, metavar="PATH", help="Secrets of connections, for tshark."),
    *_TLS_MORE,
    _option("-g", "--hdr-digest", is_flag=True, help="Header digests."),
    _option("-G", "--data-digest", is_flag=True, help="Data digests."),
    _option("-T", "--tos", type=U8, metavar="TOS", help="IP type of service, 0 to 255."),
    _option("--mark", type=U32, metavar="N", help="SO_MARK of the sockets."),
    _option("--congestion", metavar="NAME", help="TCP congestion control of the sockets."),
    _option("--sndbuf", "sndbuf_bytes", type=BYTES, metavar="SIZE", help="Send buffer.  [default: adapts itself]"),
    _option("--rcvbuf", "rcvbuf_bytes", type=BYTES, metavar="SIZE", help="Receive buffer.  [default: adapts itself]"),
    _option(
        "--trtype-code",
        type=Number(1, 255),
        metavar="N",
        expose_value=False,
        callback=_set_trtype_code,
        help="TRTYPE of mptcp in Discovery entries.  [default: 4, provisionally]",
    ),
    _option(
        "--connect-timeout", type=SECONDS, default=10.0, show_default=True, metavar="SECONDS",
        help="Connect timeout.",
    ),
    _option(
        "-k", "--keep-alive-tmo", type=SECONDS, default=5.0, show_default=True, metavar="SECONDS",
        help="Keep Alive Timeout; 0: none.",
    ),
)  # fmt: skip
_CONTROLLER = (
    _option("-n", "--nqn", brief=False, metavar="NQN", help="Subsystem NQN.  [default: the only one]"),
    _option(
        "-i", "--nr-io-queues", type=Number(0, 65535), default=1, show_default=True, metavar="N", help="I/O queues."
    ),
    _option(
        "-Q", "--queue-size", type=Number(0, 65536), default=128, show_default=True, metavar="N", help="Queue entries."
    ),
    _option("--disable-sqflow", is_flag=True, help="Without SQ flow control."),
    _option("--abort-first", is_flag=True, help="Abort timed-out commands first."),
    _option("--timeout", type=SECONDS, default=30.0, show_default=True, metavar="SECONDS", help="Command timeout."),
)  # fmt: skip
_PATHS = (
    _option(
        "--mptcp-subflow",
        multiple=True,
        metavar="ADDR[%DEV][,backup]|auto",
        help="Connect from this address too; repeatable. auto: from every interface that is up.",
    ),
    _option("--mptcp-fullmesh", is_flag=True, help="... to every address that is announced."),
    _option("--mptcp-limits", metavar="SUBFLOWS,ADDRESSES", help="At least these limits.  [default: 8,8]"),
    _option("--path-manager", metavar="NAME", help="kernel or userspace, for this namespace."),
)
_FORMAT = click.option(
    "-o",
    "--output-format",
    "output",
    type=click.Choice(["normal", "json"]),
    default="normal",
    show_default=True,
    help="For people, or for programs.",
)
_NAMESPACE = click.option(
    "-N", "--namespace-id", "nsid", type=U32, metavar="NSID", help="Namespace.  [default: the only one]"
)


def _apply(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def connection_options(command: F) -> F:
    """Add the options of where to connect, and from where; for discovery too."""
    return _apply(command, (*_places(False), *_CONNECTION))


_FILES = "those of config.json and discovery.conf"


def service_options(command: F) -> F:
    """Add the options of which discovery services to ask: one, or those of the files."""
    return _apply(command, (*_places(False, required=False, unless=_FILES), *_CONNECTION))


def all_controllers_options(command: F) -> F:
    """Add the options of which discovery services to ask, and those of all controllers that the services name."""
    return _apply(command, (*_places(False, required=False, unless=_FILES), *_CONNECTION, *_CONTROLLER[1:], *_PATHS))


def port_options(command: F) -> F:
    """Add the options of a subsystem's port, for config.json."""
    return _apply(command, (*_places(False, required=False)[1:], *_CONNECTION, *_CONTROLLER))


def controller_options(command: F) -> F:
    """Add the options of a connection to a subsystem, over one path or several."""
    return _apply(command, (*_places(True), *_CONNECTION, *_CONTROLLER, *_PATHS))


def export_options(command: F) -> F:
    """As :func:`controller_options`, for a command whose ``--tls`` is that of its clients; a key implies it here."""
    connection = tuple(each for each in _CONNECTION if each is not _TLS)
    return _apply(command, (*_places(True), *connection, *_CONTROLLER, *_PATHS))


def optional_controller_options(command: F) -> F:
    """Add :func:`controller_options` to a command that can do something without a target."""
    return _apply(command, (*_places(True, required=False), *_CONNECTION, *_CONTROLLER, *_PATHS))


def url_options(command: F) -> F:
    """Add the options of connections to targets that are named by URLs alone (:func:`subsystem.open_url`)."""
    return _apply(command, (*_CONNECTION, *_CONTROLLER[1:], *_PATHS))


def output_option(command: F) -> F:
    """Add ``-o normal|json``."""
    return _FORMAT(command)


def namespace_option(command: F) -> F:
    """Add ``-N NSID``."""
    return _NAMESPACE(command)


def coroutine(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine function a command's callback, on uvloop where installed; SIGINT ends it in order."""

    @functools.wraps(command)
    def callback(*args: Any, **kwargs: Any) -> None:
        interrupts.run(PROGRAM, command(*args, **kwargs), run)

    return callback


CONNECTION_NAMES = (
    "transport", "traddr", "trsvcid", "host_traddr", "host_iface", "hostnqn", "hostid", "hdr_digest", "data_digest",
    "tos", "mark", "congestion", "sndbuf_bytes", "rcvbuf_bytes", "connect_timeout", "keep_alive_tmo", "io_timeout",
    "admin_timeout", "hpda_bytes", "maxr2t",
)  # fmt: skip
CONTROLLER_NAMES = ("nr_io_queues", "queue_size", "disable_sqflow", "abort_first")


def split_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the connection's options out of a command's; options that were not given are left out."""
    names = (*CONNECTION_NAMES, *CONTROLLER_NAMES)
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    credentials = host_credentials(options.get("dhchap_secret"), options.get("dhchap_ctrl_secret"))
    if credentials is not None:
        chosen["dhchap"] = credentials
    secured = tls_credentials(options)
    if secured is not None:
        chosen["tls"] = secured
    if options.get("concat"):
        open_keylog(options.get("tls_keylog"))
        chosen["concat"] = True
    return chosen


def path_options(options: dict[str, Any]) -> PathOptions | None:
    """Return the options of MPTCP's paths; None when no such option was given."""
    return take_path_options(dict(options))


async def open_controller(options: dict[str, Any], **changes: Any) -> HostController:
    """Connect as the options say, over the first path that can be connected.

    Without ``--nqn`` to the only subsystem that discovery names. Raises the error of the last path.
    """
    *others, last = options["where"]
    for place in others:
        try:
            return await _open_controller({**options, **place}, **changes)
        except TransportError as error:
            out.remark(f"went on to the next path: {error}")
    return await _open_controller({**options, **last}, **changes)


async def _open_controller(options: dict[str, Any], **changes: Any) -> HostController:
    chosen = {**split_options(options), **changes}
    timeout = options.get("timeout")
    if timeout is not None:
        chosen["io_timeout"] = chosen["admin_timeout"] = timeout
    nqn = options.get("nqn")
    if nqn is None:
        entry = await _only_subsystem(options)
        nqn = entry.subnqn
        chosen["traddr"], chosen["trsvcid"] = entry.address, entry.port
    if nqn == DISCOVERY_NQN:
        chosen.update(discovery=True, nr_io_queues=0)
    chosen.setdefault("trsvcid", NVME_PORT)
    return await connect(subnqn=nqn, paths=path_options(options), **chosen)


async def subsystem_of_any(options: dict[str, Any]) -> str:
    """Return the NQN of the only subsystem that discovery names, by the first path that answers."""
    *others, last = options["where"]
    for place in others:
        try:
            return (await _only_subsystem({**options, **place})).subnqn
        except TransportError as error:
            out.remark(f"went on to the next path: {error}")
    return (await _only_subsystem({**options, **last})).subnqn


def discovery_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that discovery takes."""
    chosen = split_options(options)
    for name in (*CONTROLLER_NAMES, "keep_alive_tmo", "concat"):  # discovery demands no authentication
        chosen.pop(name, None)
    return chosen


async def _only_subsystem(options: dict[str, Any]) -> DiscoveryEntry:
    entries = [entry for entry in await discover(**discovery_options(options)) if usable(entry, options)]
    # the port that was asked, where the log has it
    entries.sort(key=lambda entry: entry.trsvcid != str(options.get("trsvcid")))
    names = sorted({entry.subnqn for entry in entries})
    if not names:
        raise NvmeofError(f"the discovery service at {options['traddr']} names no NVM subsystem that can be used")
    if len(names) > 1:
        raise ConfigurationError(f"which subsystem? Give one with --nqn: {', '.join(names)}")
    return entries[0]


def usable(entry: DiscoveryEntry, options: dict[str, Any]) -> bool:
    """Return whether an entry is an NVM subsystem behind a transport that this package has; a port that requires TLS
    gets a remark where the options have no key for it."""
    if entry.is_nvm and entry.requires_tls and not wants_tls(options):
        out.remark(f"left out {entry.subnqn} at {entry.address}: it requires TLS: give --tls-key")
        return False
    try:
        get(entry.trtype)
    except ConfigurationError:
        return False
    return entry.is_nvm


def transport_name(entry: DiscoveryEntry) -> str:
    """Return the entry's transport as ``-t`` takes it; the standard's name, or the number, where this package has
    none."""
    if entry.transport == "mptcp":
        return entry.transport  # the form of TRTYPE 3 and TSAS too
    try:
        return get(entry.trtype).name
    except ConfigurationError:
        return entry.transport


def paths_to_subsystems(entries: Iterable[DiscoveryEntry], options: dict[str, Any]) -> dict[str, list[ConnectOptions]]:
    """Return the distinct paths to each subsystem that the entries name, in the log's order.

    The transport is the requested one, whatever the TRTYPE of an entry: MPTCP falls back to TCP, and an MPTCP port
    serves TCP hosts. So the entries of one port that differ only in their form are one path.
    """
    hostnqn, hostid = host_identity(options.get("hostnqn"), options.get("hostid"))
    found: dict[str, list[ConnectOptions]] = {}
    for entry in entries:
        if not usable(entry, options):
            continue
        try:
            path = ConnectOptions(
                transport=options["transport"],
                traddr=entry.address,
                trsvcid=entry.port,
                subnqn=entry.subnqn,
                hostnqn=hostnqn,
                hostid=hostid,
                host_traddr=options.get("host_traddr"),
                host_iface=options.get("host_iface"),
            )
        except NvmeofError as error:
            out.remark(f"left out an entry of {entry.subnqn}: {error}")
            continue
        found.setdefault(entry.subnqn, []).append(path)
    return {subnqn: distinct_paths(candidates) for subnqn, candidates in found.items()}


async def open_namespace(controller: HostController | HostSubsystem, nsid: int | None) -> Namespace:
    """Return the namespace ``nsid``, or the only one. Raises :class:`ConfigurationError` where there are several."""
    if nsid is None:
        active = await controller.active_namespaces()
        if not active:
            raise NvmeofError(f"{controller.options.subnqn} has no active namespace")
        if len(active) > 1:
            raise ConfigurationError(f"which namespace? Give one with -N: {', '.join(map(str, active[:32]))}")
        nsid = active[0]
    namespace = controller.namespace(nsid)
    await namespace.refresh()
    return namespace
