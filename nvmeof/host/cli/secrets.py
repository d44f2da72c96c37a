"""Secrets: the options that name them, ``gen-dhchap-key`` and ``check-dhchap-key``."""

from __future__ import annotations

import getpass
from typing import Any

import click

from nvmeof.cli.types import Number
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import output as out
from nvmeof.host.identity import host_identity
from nvmeof.security.dhchap_host import HostCredentials
from nvmeof.security.secret import KEY_SIZES, PREFIX, Secret, generate_secret, load_secret, parse_secret
from nvmeof.security.tls.credentials import TlsCredentials
from nvmeof.security.tls.key import PREFIX as TLS_PREFIX
from nvmeof.security.tls.key import Derivation, TlsKey, generate_tls_key, load_tls_key, parse_tls_key
from nvmeof.security.tls.keylog import open_keylog
from nvmeof.security.tls.suites import SUITES, parse_suites
from nvmeof.spec.auth import HashId
from nvmeof.spec.nqn import check_nqn

PROMPT = "prompt"


def read_secret(source: str | Secret, option: str) -> Secret:
    """Read the secret that an option names: ``file:PATH``, ``env:NAME``, ``prompt``, or, as in nvme-cli, the secret.

    Raises :class:`ConfigurationError`. A secret on the command line is taken with a remark, since every user can read
    it there.
    """
    if isinstance(source, Secret):  # read from a file already
        return source
    if source == PROMPT:
        return parse_secret(getpass.getpass(f"secret of {option}: "))
    if source.startswith(PREFIX):
        out.remark(
            f"every user can read the secret of {option} in the process list: give file:PATH, env:NAME or prompt"
        )
    return load_secret(source)


def host_credentials(secret: str | Secret | None, controller_secret: str | Secret | None) -> HostCredentials | None:
    """Return the credentials of ``--dhchap-secret`` and ``--dhchap-ctrl-secret``; None without them."""
    if secret is None:
        if controller_secret is not None:
            raise ConfigurationError("--dhchap-ctrl-secret needs the host's own secret: give --dhchap-secret too")
        return None
    controller = None if controller_secret is None else read_secret(controller_secret, "--dhchap-ctrl-secret")
    return HostCredentials(read_secret(secret, "--dhchap-secret"), controller)


def wants_tls(options: dict[str, Any]) -> bool:
    """Return whether the options ask for TLS."""
    return bool(options.get("tls") or options.get("tls_key"))


def tls_credentials(options: dict[str, Any]) -> TlsCredentials | None:
    """Return what ``--tls`` and ``--tls-key`` stand for; None without them. Opens the key log that is asked for."""
    if not wants_tls(options):
        return None
    source = options.get("tls_key")
    if source is None:
        raise ConfigurationError("--tls needs the pre-shared key: give --tls-key file:PATH")
    if isinstance(source, TlsKey):
        key = source
    elif source == PROMPT:
        key = parse_tls_key(getpass.getpass("key of --tls-key: "))
    else:
        if source.startswith(TLS_PREFIX):
            out.remark(
                "every user can read the key of --tls-key in the process list: give file:PATH, env:NAME or prompt"
            )
        key = load_tls_key(source)
    open_keylog(options.get("tls_keylog"))
    version, suites = options.get("tls_identity"), options.get("tls_suites")
    return TlsCredentials(
        key,
        1 if version is None else int(version),
        Derivation.LIBNVME_1_14 if options.get("tls_compat") else None,
        SUITES if suites is None else parse_suites(suites),
    )


@click.command("gen-dhchap-key")
@click.option(
    "-m",
    "--hmac",
    type=Number(0, 3),
    default=0,
    show_default=True,
    metavar="N",
    help="Transformation of the key before use: 0 none, 1 SHA-256, 2 SHA-384, 3 SHA-512.",
)
@click.option(
    "-l",
    "--key-length",
    type=Number(),
    metavar="BYTES",
    help="32, 48 or 64.  [default: 32, or what belongs to the transformation]",
)
def gen_dhchap_key(hmac: int, key_length: int | None) -> None:
    """Make a random secret for DH-HMAC-CHAP, and print it."""
    transform = HashId(hmac) if hmac else None
    size = key_length or (32 if transform is None else transform.size)
    if size not in KEY_SIZES or (transform is not None and size != transform.size):
        wanted = "32, 48 or 64 bytes" if transform is None else f"{transform.size} bytes for --hmac {hmac}"
        raise ConfigurationError(f"a key has {wanted}, not {size}")
    print(generate_secret(size, transform=transform).to_text())


@click.command("check-dhchap-key")
@click.option("-k", "--key", default=PROMPT, metavar="SOURCE", help="file:PATH, env:NAME, or prompt (the default).")
def check_dhchap_key(key: str) -> None:
    """Check a secret's form and checksum; say what it is, and not the secret."""
    secret = read_secret(key, "--key")
    transform = "not transformed" if secret.transform is None else f"transformed with {secret.transform.name}"
    print(f"the secret is good: {len(secret.key)} bytes, {transform}")


@click.command("gen-tls-key")
@click.option(
    "-m",
    "--hmac",
    type=Number(1, 2),
    default=1,
    show_default=True,
    metavar="N",
    help="Hash function: 1 SHA-256 (a key of 32 bytes), 2 SHA-384 (48 bytes).",
)
def gen_tls_key(hmac: int) -> None:
    """Make a random pre-shared key for TLS, and print it in the interchange form."""
    print(generate_tls_key(HashId(hmac)).to_text())


@click.command("check-tls-key")
@click.option(
    "-d",
    "-k",
    "--keydata",
    "--key",
    "key",
    default=PROMPT,
    metavar="SOURCE",
    help="file:PATH, env:NAME, or prompt (the default).",
)
@click.option("-n", "--hostnqn", metavar="NQN", help="Host NQN, for its identity.  [default: /etc/nvme's, or our own]")
@click.option("-c", "--subsysnqn", metavar="NQN", help="Subsystem NQN: say the identity that TLS has there.")
@click.option(
    "-I",
    "--identity",
    "version",
    type=click.Choice(["0", "1"]),
    default="1",
    show_default=True,
    help="Version of the identity.",
)
@click.option("-C", "--compat", is_flag=True, help="The identity that libnvme up to 1.14 derives.")
def check_tls_key(key: str, hostnqn: str | None, subsysnqn: str | None, version: str, compat: bool) -> None:
    """Check a TLS key's form and checksum; say what it is, and its identity, and not the key."""
    found = parse_tls_key(getpass.getpass("TLS key: ")) if key == PROMPT else load_tls_key(key)
    if subsysnqn is None:
        how = "retained" if found.hash_id is None else f"configured, for {found.hash_id.name}"
        print(f"the key is good: {len(found.key)} bytes, {how}")
        return
    nqn = host_identity(hostnqn, None)[0]
    derivation = Derivation.LIBNVME_1_14 if compat else Derivation.RFC8446
    print(found.identity(nqn, check_nqn(subsysnqn, "the subsystem NQN"), version=int(version), derivation=derivation))


COMMANDS: tuple[Any, ...] = (gen_dhchap_key, check_dhchap_key, gen_tls_key, check_tls_key)
