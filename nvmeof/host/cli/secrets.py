"""Secrets: the options that name them, ``gen-dhchap-key`` and ``check-dhchap-key``."""

from __future__ import annotations

import getpass
from typing import Any

import click

from nvmeof.cli.types import Number
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import output as out
from nvmeof.security.dhchap_host import HostCredentials
from nvmeof.security.secret import KEY_SIZES, PREFIX, Secret, generate_secret, load_secret, parse_secret
from nvmeof.spec.auth import HashId

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


COMMANDS: tuple[Any, ...] = (gen_dhchap_key, check_dhchap_key)
