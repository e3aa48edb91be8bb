"""`taas evidence`: checks what `taas instance evidence` has issued."""

import sys
from pathlib import Path
from typing import Any

import click
import orjson

from deploy.cli.connection import call
from deploy.cli.output import json_option, print_json

_BYTES_MAX = 64 * 1024 * 1024


@click.group()
def evidence() -> None:
    """Evidence of instances: verify it offline; show the key that checks it."""


@evidence.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    metavar="PUBLIC",
    help="File with the public key (PEM). Default: evidence.pub in TAAS_HOME.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="EARLIER",
    help="Name also what differs from this earlier evidence: weights, listeners, callers …",
)
@json_option
def verify(file: Path, key_file: Path | None, against: Path | None, as_json: bool) -> None:
    """Check the evidence in FILE, offline. Exit status: 0 it is as it was signed (and says the same as
    EARLIER), 1 it is not, with what differs.

    \b
    taas instance evidence llama-private > evidence.json
    taas evidence verify evidence.json --key evidence.pub
    """
    from billing.wire.evidence import EvidenceError, check, differences, read_public_key
    from deploy.local.settings import LocalSettings

    path = key_file or LocalSettings().folder / "evidence.pub"
    try:
        public = read_public_key(_read(path).decode("utf-8", "replace"))
        document = _document(file)
        found = check(document, public)
        if against is not None:
            earlier = _document(against)
            found += [f"{against}: {each}" for each in check(earlier, public)]
            found += differences(earlier, document)
    except EvidenceError as exc:
        raise click.ClickException(f"{exc}.") from exc
    if as_json:
        print_json({"good": not found, "differences": found})
    elif not found:
        click.echo(f"{file} is as it was signed.")
    else:
        for line in found:
            click.echo(line, err=True)
    if found:
        sys.exit(1)


@evidence.command("key")
@json_option
def show_key(as_json: bool) -> None:
    """Print the public key that checks evidence, to be published."""
    found = call("GET", "evidence-key")
    if as_json:
        print_json(found)
    else:
        click.echo(found["public_key"], nl=False)


def _document(path: Path) -> Any:
    try:
        return orjson.loads(_read(path))
    except orjson.JSONDecodeError as exc:
        raise click.ClickException(f"{path} is not JSON: {exc}") from exc


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES_MAX + 1)
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be read: {exc.strerror}") from exc
    if len(raw) > _BYTES_MAX:
        raise click.ClickException(f"{path} has more than {_BYTES_MAX} bytes")
    return raw
