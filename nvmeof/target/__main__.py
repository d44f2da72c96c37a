"""``python -m nvmeof.target``: serve ramdisks and files to NVMe/TCP and NVMe-over-MPTCP hosts.

Exit codes: 0 stopped by SIGINT, SIGTERM or SIGHUP, 1 something could not be done (an address in use, a file that can't
be opened), 2 asked for wrongly, 130 ended by SIGINT before it served.
"""

from __future__ import annotations

if __name__ == "__main__":
    from nvmeof.cli import early

    early.exit_at_interrupt()

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click
from click.core import ParameterSource

from nvmeof.aio.runloop import run
from nvmeof.cli.exit_codes import run_program
from nvmeof.cli.json_log import JsonFormatter
from nvmeof.cli.lazy import LazyGroup
from nvmeof.cli.line_log import to_stderr
from nvmeof.cli.types import SECONDS, U8, Bytes, Number, Seconds
from nvmeof.security.words import GROUP_WORDS, HASH_NAMES
from nvmeof.spec.enums import CNTLID_MAX
from nvmeof.target.cli.options import Options
from nvmeof.target.cli.serve import serve
from nvmeof.target.core.connection_limits import CONNECTIONS_MOST
from nvmeof.target.metrics import DEFAULT_PORT as METRICS_PORT
from nvmeof.target.simple_config import DEFAULT_SUBNQN
from nvmeof.target.subsystem.config import ADVERTISE_FORMS, TLS_OFF, TLS_POLICIES
from nvmeof.version import __version__

_BESIDE_CONFIG: Final = frozenset(
    {
        "config",
        "check",
        "mdns",
        "slow_command",
        "metrics",
        "metrics_latency",
        "log_format",
        "uvloop",
        "output",
        "verbose",
        "quiet",
        "control",
        "tls_keylog",
        "audit_log",
    }
)
"""Options that --config leaves to the command line."""
_PATIENCE_SECONDS: Final = 1.0
"""Seconds that a line of the log waits for its reader: a target goes on when its log is not read."""


_COMMANDS: Final = {
    "completion": ("nvmeof.target.cli.shell", "Print what makes a shell complete commands and options."),
    "ctl": ("nvmeof.target.cli.ctl", "Show and change a target that runs."),
}
"""The commands beside serving: their modules, and the first sentences of their help."""


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND [ARGS]...]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    help="Serve what this file says: TOML, JSON, or nvmetcli's config.json; SIGHUP reads it again "
    "(docs/howto/configuration.md).",
)
@click.option("--check", is_flag=True, help="Say what is wrong with the file of --config, and serve nothing.")
@click.option(
    "--control",
    metavar="PATH|auto",
    help="Let this user and root control the target through a socket there, with nvmeof-target ctl; auto: "
    "nvmeof-target.sock in XDG_RUNTIME_DIR, or in /run for root (docs/howto/control.md).",
)
@click.option("-t", "--trtype", default="mptcp", show_default=True, help="Transport: mptcp (falls back to tcp) or tcp.")
@click.option("--trtype-code", type=U8, help="TRTYPE told in Discovery (mptcp: 4, provisionally).")
@click.option(
    "-l",
    "--listen",
    multiple=True,
    metavar="ADDR[:PORT]",
    help="Address to serve on; repeatable. IPv6 with a port in brackets: [::1]:4420. A port alone, * and [::] are "
    "all addresses of both families.  [default: 0.0.0.0:4420]",
)
@click.option(
    "--discovery", multiple=True, metavar="ADDR[:PORT]", help="A discovery-only port (8009 unless given); repeatable."
)
@click.option("--mdns", is_flag=True, help="Announce the discovery service by multicast DNS (_nvme-disc._tcp).")
@click.option(
    "--advertise",
    metavar="ADDR[:PORT]",
    help="Address (or port alone) that Discovery tells hosts, behind NAT or a proxy.",
)
@click.option(
    "--advertise-as",
    multiple=True,
    type=click.Choice(ADVERTISE_FORMS),
    help="Form of Discovery entries: own TRTYPE, plain tcp, or tsas; repeatable.  [default: own and tcp]",
)
@click.option(
    "--ramdisk",
    multiple=True,
    metavar="SIZE[,ZONES]",
    help="A namespace in memory, such as 256M or 2T; repeatable. ZONES makes it a zoned one: zoned, zone-size=64M, "
    "zone-capacity=48M, max-open=8, max-active=12, zdes=64, read-across=no, any of them.  [default: one of 1G]",
)
@click.option(
    "--keep-ramdisks",
    is_flag=True,
    help="Make the ramdisks in memory files, which a restart (SIGUSR2) hands over without copying them "
    "(docs/howto/restart.md).",
)
@click.option(
    "--file",
    multiple=True,
    metavar="PATH[,ZONES]",
    help="A namespace in a file or block device; repeatable; numbered after the ramdisks. What belongs to a "
    "file's data is stored beside it, in PATH.nvmeof and PATH.zones.",
)
@click.option(
    "--namespace",
    multiple=True,
    metavar="KIND:VALUE[,OPTION=...][,FILTER:...]",
    help="A namespace of any kind, with filters in front of it: file:/srv/a.img,nsid=7,delay:read=10ms; repeatable; "
    "numbered after the others. A comma in a value is written ,, (docs/howto/filters.md).",
)
@click.option("--size", metavar="SIZE", help="Create the --file, or extend it, to this size.")
@click.option(
    "--block-size",
    type=Bytes(),
    metavar="512|4096",
    help="Logical block size in bytes.  [default: what the --file had before, or 512]",
)
@click.option(
    "--ana",
    multiple=True,
    metavar="GROUP=STATE[@ADDR:PORT]",
    help="State of an ANA group at the start: optimized, non-optimized, inaccessible, persistent-loss or change; on "
    "all ports, or on the one that listens there (@PORT will do); repeatable. A namespace is in group 1, or as "
    "--namespace ...,anagrpid=N says.  [default: optimized]",
)
@click.option(
    "--capacity",
    metavar="SIZE",
    help="Let hosts create namespaces, of so much together, and attach and delete them; in memory unless --pool.",
)
@click.option("--pool", metavar="DIR", help="Directory for what hosts create; found again after a restart.")
@click.option(
    "--read-only", is_flag=True, help="Refuse writes (to ramdisks and files; hosts write to what they create)."
)
@click.option("--shared", is_flag=True, help="Serve a --file that another process has locked, too.")
@click.option("--direct", is_flag=True, help="Read and write each --file past the page cache (O_DIRECT).")
@click.option(
    "-n",
    "--subnqn",
    default=DEFAULT_SUBNQN,
    show_default=True,
    help="The subsystem's NQN; serial, NGUID and UUID derive from it.",
)
@click.option("--serial", default="", help="Serial number.")
@click.option("--model", default="nvmeof", show_default=True, help="Model number.")
@click.option(
    "--allow-host", multiple=True, metavar="NQN", help="Only this host may connect; repeatable.  [default: any host]"
)
@click.option(
    "--dhchap-key",
    multiple=True,
    metavar="HOSTNQN=SOURCE",
    help="Let this host in only when it authenticates itself with this secret, from file:PATH or env:NAME; repeatable "
    "(docs/howto/authentication.md).",
)
@click.option(
    "--dhchap-ctrl-key",
    multiple=True,
    metavar="HOSTNQN=SOURCE",
    help="Prove to this host, when it asks, that this target has that secret; repeatable.",
)
@click.option(
    "--dhchap-hash",
    type=click.Choice(HASH_NAMES),
    help="Hash function of authentication.  [default: the first that a host offers]",
)
@click.option(
    "--dhchap-dhgroup",
    type=click.Choice(tuple(GROUP_WORDS)),
    help="Diffie-Hellman group of authentication.  [default: the first that a host offers]",
)
@click.option(
    "--managing-host",
    multiple=True,
    metavar="NQN",
    help="Only this host may format, sanitize, manage and write-protect namespaces, and reset the subsystem; "
    "repeatable.  [default: every host that may connect]",
)
@click.option(
    "--audit-log",
    metavar="FILE|-",
    help="Write who connected, was refused, failed to authenticate itself or changed what others see to this file, "
    "or to standard output, as lines of JSON; SIGHUP opens it again (docs/howto/who-may-do-what.md).",
)
@click.option("--require-authentication", is_flag=True, help="Refuse hosts that have no --dhchap-key.")
@click.option(
    "--tls",
    type=click.Choice(TLS_POLICIES),
    default=TLS_OFF,
    show_default=True,
    help="TLS 1.3 with pre-shared keys on all ports: none, beside plain connections, or alone (docs/howto/tls.md).",
)
@click.option(
    "--tls-key",
    multiple=True,
    metavar="HOSTNQN=SOURCE",
    help="The TLS key of this host, from file:PATH or env:NAME, as gen-tls-key makes it; repeatable.",
)
@click.option(
    "--tls-suites", metavar="NAME[,NAME...]", help="Cipher suites that are allowed, in order.  [default: all three]"
)
@click.option(
    "--tls-keylog",
    metavar="PATH",
    help="Append the secrets of all connections, for tshark; who reads it can read them.  [default: SSLKEYLOGFILE]",
)
@click.option(
    "--reauthenticate",
    type=SECONDS,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="End hosts that do not authenticate themselves again in this time; 0: once is enough. Linux never does.",
)
@click.option(
    "--max-queues",
    type=Number(1, 65535),
    metavar="N",
    default=128,
    show_default=True,
    help="I/O queues per controller.",
)
@click.option(
    "--queue-size",
    type=Number(2, 65536),
    metavar="N",
    default=1024,
    show_default=True,
    help="Entries per I/O queue at the most.",
)
@click.option(
    "--mdts",
    default="1M",
    show_default=True,
    metavar="SIZE",
    help="Largest transfer of one command; 0 tells hosts no limit, and takes what memory allows (64M).",
)
@click.option(
    "--in-capsule",
    default="8K",
    show_default=True,
    metavar="SIZE",
    help="Largest data within an I/O command's capsule; 0: none.",
)
@click.option(
    "--max-h2c-data", default="1M", show_default=True, metavar="SIZE", help="Largest H2CData PDU (MAXH2CDATA)."
)
@click.option(
    "--max-controllers",
    type=Number(0, CNTLID_MAX),
    metavar="N",
    default=0,
    help="Controllers at a time; more are told to try again later.  [default: as many as have identifiers]",
)
@click.option(
    "--max-controllers-per-host",
    type=Number(0, CNTLID_MAX),
    metavar="N",
    default=0,
    help="The same of one host.  [default: any number]",
)
@click.option(
    "--max-connections",
    type=Number(1, 1 << 20),
    metavar="N",
    default=CONNECTIONS_MOST,
    show_default=True,
    help="Open connections; one address gets half of them.",
)
@click.option(
    "--memory", default="256M", show_default=True, metavar="SIZE", help="Memory for data on its way, of all hosts."
)
@click.option(
    "--keep-alive-range",
    metavar="MIN-MAX",
    help="Refuse hosts that ask for a keep alive timeout (seconds) outside of it: 5-120, or 5-.",
)
@click.option(
    "--rate-limit",
    multiple=True,
    metavar="WHAT,LIMIT",
    help="Let commands wait that exceed it: namespace:NSID or host:NQN (host:* is each other one), then bytes=100M, "
    "operations=5000, burst=SECONDS, any of them; repeatable (docs/howto/limits.md).",
)
@click.option("--cntlid-min", type=int, default=1, show_default=True, metavar="N", help="Lowest controller identifier.")
@click.option(
    "--cntlid-max",
    type=int,
    default=CNTLID_MAX,
    show_default=True,
    metavar="N",
    help="Highest one; targets that serve the same subsystem NQN need ranges that do not overlap.",
)
@click.option(
    "--digests/--no-digests", default=True, show_default=True, help="Grant digests (CRC32C) to hosts that ask."
)
@click.option(
    "--keep-alive",
    type=SECONDS,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="End silent hosts that ask for no keep alive; 0: never.",
)
@click.option("--admin-label", default="", help="A name for people, told by Discovery in its extended entries.")
@click.option(
    "--state",
    metavar="PATH",
    help="A file for what outlives the process: event history, saved features, power-on hours.  "
    "[default: that of the --pool, if any]",
)
@click.option(
    "--slow-command",
    type=Seconds(0.001),
    metavar="SECONDS",
    help="Log each command that takes so long or longer (docs/howto/trace.md).",
)
@click.option(
    "--metrics",
    metavar="ADDR[:PORT]",
    help=f"Show what it counts to Prometheus, at http://ADDR:PORT/metrics; PORT is {METRICS_PORT} unless given "
    "(docs/howto/metrics.md).",
)
@click.option(
    "--metrics-latency/--no-metrics-latency",
    default=True,
    show_default=True,
    help="With --metrics: histograms of how long commands take.",
)
@click.option(
    "--poll",
    type=Number(0, 10_000),
    default=0,
    show_default=True,
    metavar="MICROSECONDS",
    help="Poll I/O queues in use for so long before the kernel has to wake the target (200 does for most): hosts that "
    "wait for each command get it sooner, and a processor is busy meanwhile.",
)
@click.option("--congestion", metavar="NAME", help="TCP congestion control of all connections.")
@click.option("--sndbuf", metavar="SIZE", help="Send buffer of all connections.  [default: adapts itself]")
@click.option("--rcvbuf", metavar="SIZE", help="Receive buffer of all connections.  [default: adapts itself]")
@click.option(
    "--mptcp-signal",
    multiple=True,
    metavar="ADDR[%DEV][,backup]|auto",
    help="Announce this address to MPTCP hosts; repeatable. auto: one of every interface that is up.",
)
@click.option("--mptcp-limits", metavar="SUBFLOWS,ADDRESSES", help="At least these limits.  [default: 8,8]")
@click.option("--path-manager", metavar="NAME", help="kernel or userspace, for the whole network namespace.")
@click.option("--tos", type=U8, help="Type of service of all connections.")
@click.option("--uvloop/--no-uvloop", default=None, help="Event loop.  [default: uvloop where installed]")
@click.option(
    "-o",
    "--output-format",
    "output",
    type=click.Choice(["normal", "json"]),
    default="normal",
    show_default=True,
    help="Form of what is said at the start.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the log's lines, on standard error.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every refused command too.")
@click.option("-q", "--quiet", is_flag=True, help="Log only what goes wrong.")
@click.version_option(__version__, prog_name="nvmeof-target")
def cli(verbose: bool, quiet: bool, block_size: int | None, **given: Any) -> None:
    """Serve namespaces to NVMe/TCP and NVMe-over-MPTCP hosts, until SIGINT, SIGTERM or (without --config) SIGHUP.

    Without options: a ramdisk of 1 GiB on 0.0.0.0:4420 over MPTCP; plain TCP hosts can connect as well.
    """
    if click.get_current_context().invoked_subcommand is not None:
        _refuse_before_command()
        return
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    to_stderr(level, "%(asctime)s %(message)s", "%H:%M:%S")
    if given["log_format"] == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if block_size not in (None, 512, 4096):
        raise click.UsageError(f"--block-size is 512 or 4096, not {block_size}")
    options = Options(block_size=block_size, **given)
    if options.config is None and options.check:
        raise click.UsageError("--check is for a file: give --config FILE too")
    if options.config is not None:
        _refuse_beside_config()
    run(serve(options), uvloop=options.uvloop)


def _given() -> Iterator[click.Parameter]:
    """Yield the options that the command line has."""
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            yield parameter


def _refuse_before_command() -> None:
    """Raise a usage error for an option of serving in front of a command that serves nothing."""
    for parameter in _given():
        command = click.get_current_context().invoked_subcommand
        raise click.UsageError(f"{parameter.opts[-1]} is for serving: {command} takes its options behind its name")


def _refuse_beside_config() -> None:
    """Raise a usage error for an option whose place is the configuration file."""
    for parameter in _given():
        if parameter.name not in _BESIDE_CONFIG:
            raise click.UsageError(f"{parameter.opts[-1]} belongs into the file of --config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One sentence on stderr for whatever goes wrong."""
    return run_program("nvmeof-target", cli, arguments, demand_output=False, patience_seconds=_PATIENCE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
