"""`taas model`: names that callers ask for."""

import time
from collections.abc import Callable
from typing import Any

import click

from billing.wire.routes import OFFERED_ROUTES
from deploy.cli.connection import call, call_list, given
from deploy.cli.output import Columns, Row, json_option, limit_option, moment, print_fields, print_json, show

Command = Callable[..., None]


def _visible(row: Row) -> str:
    if row["owner"] is not None:
        return f"{row['tenant_names'][row['owner']]} (owner)"
    named = row["visible"]
    return named if isinstance(named, str) else ", ".join(row["tenant_names"][tenant] for tenant in named)


def _for_sale(row: Row) -> str:
    if row["visible"] == "internal":
        return "internal"
    if row["status"] == "retired":
        return "no: retired"
    if row["for_sale_from_ms"] is None:
        return "no: no price"
    since = moment("for_sale_from_ms")(row)
    return "yes" if row["for_sale_from_ms"] <= time.time() * 1000 else f"from {since}"


def _warn_unpriced(entry: Row) -> None:
    if _for_sale(entry) == "no: no price":
        click.echo(
            f"warning: {entry['name']} has no price: external tenants do not know of it. `taas price set "
            f"--model {entry['name']} …` sells it, "
            "`--free` gives it away",
            err=True,
        )


_COLUMNS: Columns = {
    "NAME": "name", "STATUS": "status", "FOR SALE": _for_sale, "VISIBLE TO": _visible, "ROUTES": "routes",
    "CONTEXT": "context_tokens", "POOL": "pool",
    "WEIGHTS (IN/CACHED/OUT)": lambda row: _weights_word(row["weights"]),
}  # fmt: skip


class _Weights(click.ParamType[dict[str, int]]):
    """`IN,CACHED,OUT` in milliunits per token."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        words = str(value).split(",")
        if len(words) != 3 or not all(word.strip().isascii() and word.strip().isdecimal() for word in words):
            raise click.BadParameter(
                f"{value!r} is not IN,CACHED,OUT in milliunits per token, such as 1000,100,4000", ctx, param
            )
        return dict(zip(("w_in_mu", "w_cached_mu", "w_out_mu"), map(int, words), strict=True))


def _shared(command: Command) -> Command:
    """Options that `add` and `set` have in common."""
    options = (
        click.option(
            "--context",
            "context_tokens",
            type=int,
            metavar="TOKENS",
            help="Longest prompt and answer together.",
        ),
        click.option("--visible", type=click.Choice(["everyone", "internal"]), help="Who may see it."),
        click.option(
            "--for",
            "audience",
            multiple=True,
            metavar="TENANT",
            help="Only this tenant may see it; repeat it for more.",
        ),
        click.option(
            "--route",
            "routes",
            multiple=True,
            type=click.Choice(OFFERED_ROUTES),
            help="Offered on this route; repeat it for more.",
        ),
        click.option("--engine-model", metavar="NAME", help="Its engines' name for it."),
        click.option(
            "--vocabulary", "vocabulary_tokens", type=int, metavar="TOKENS", help="Size of its vocabulary."
        ),
        click.option(
            "--default-max-tokens", type=int, metavar="TOKENS", help="Output limit of requests that set none."
        ),
        click.option(
            "--weights",
            type=_Weights(),
            metavar="IN,CACHED,OUT",
            help="Milliunits of work per token: 1000,100,4000.",
        ),
        click.option(
            "--allow-template-kwarg",
            "kwargs",
            multiple=True,
            metavar="NAME",
            help="Callers may set it in chat_template_kwargs.",
        ),
        click.option(
            "--max-body-bytes",
            type=int,
            metavar="BYTES",
            help="Largest request body: 10000000 for a model that reads photographs. Default: the gateway's.",
        ),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def model() -> None:
    """Models: add, list, show, set."""


@model.command()
@click.argument("name")
@click.option("--owner", metavar="TENANT", help="A private model: only its owner may use it.")
@click.option("--pool", help="The pool of its instances. Default: its own.")
@_shared
def add(name: str, owner: str | None, pool: str | None, as_json: bool, **fields: Any) -> None:
    """Add the model NAME. For a model that comes with us, its name is enough.

    \b
    taas model add smollm2-135m-instruct
    taas model add llama-70b --context 131072 --engine-model meta-llama/Llama-3.3-70B-Instruct
    taas model add ft-acme --context 8192 --owner acme
    """
    body = {**_known(name), **_body(fields)} | given(name=name, owner=owner, pool=pool)
    if "context_tokens" not in body:
        raise click.UsageError(f"give --context: how many tokens does the context of {name} hold?")
    made = call("POST", "models", body=body)
    if as_json:
        print_json(made)
    else:
        click.echo(f"model {made['name']} is in pool {made['pool']}, visible to {_visible(made)}")
        _warn_unpriced(made)
        click.echo(f"next: taas worker {made['name']}, or taas instance add --model {made['name']} --url URL")


@model.command("list")
@click.option("--name", help="Only names that contain this.")
@click.option("--status", type=click.Choice(["active", "retired"]), help="In this status only.")
@limit_option
@json_option
def list_all(name: str | None, status: str | None, limit: int | None, as_json: bool) -> None:
    """List models."""
    answer = call_list("models", query={"name": name, "status": status}, limit=limit)
    show(answer, as_json, _COLUMNS, empty="no models; add one with `taas model add NAME --context TOKENS`")


@model.command("show")
@click.argument("name")
@json_option
def show_one(name: str, as_json: bool) -> None:
    """Show the model NAME."""
    _print(call("GET", "models", name), as_json)


@model.command("set")
@click.argument("name")
@click.option(
    "--status", type=click.Choice(["active", "retired"]), help="Requests for a retired model get 404."
)
@click.option(
    "--reweigh",
    is_flag=True,
    help="Accept that units of signed contracts buy over 10% more or less than now.",
)
@click.option(
    "--batches/--no-batches",
    "takes_batches",
    default=None,
    help="Whether a private model takes batches, whose prompts are stored: its owner must have allowed it.",
)
@_shared
def set_fields(
    name: str,
    status: str | None,
    reweigh: bool,
    takes_batches: bool | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Change the model NAME. New weights are a new version; requests under way keep theirs.

    \b
    taas model set llama-70b --weights 1000,50,3500
    taas model set ft-acme --status retired
    """
    body = {**_body(fields), **given(status=status, takes_batches=takes_batches)}
    if not body:
        raise click.UsageError("nothing to change.")
    _print(call("PATCH", "models", name, body={**body, **given(reweigh=reweigh or None)}), as_json)


def _known(name: str) -> dict[str, Any]:
    """The entry of a model that comes with us; nothing for others."""
    from serving.catalogue import known_models

    known = known_models().get(name)
    return {} if known is None else known.entry_fields()


def _body(fields: dict[str, Any]) -> dict[str, Any]:
    """The options in common, as the admin API names them."""
    audience, visible = list(fields.pop("audience")), fields.pop("visible")
    if audience and visible:
        raise click.UsageError("--visible and --for exclude each other.")
    kwargs, routes = list(fields.pop("kwargs")), list(fields.pop("routes"))
    return given(**fields, visible=audience or visible, routes=routes, chat_template_kwargs=kwargs)


def _print(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(entry)
        return
    print_fields({
        "name": entry["name"], "status": entry["status"], "for sale": _for_sale(entry),
        "visible to": _visible(entry), "routes": entry["routes"], "engine's name": entry["engine_model"],
        "context": entry["context_tokens"], "vocabulary": entry["vocabulary_tokens"],
        "max tokens by default": entry["default_max_tokens"],
        "weights (in/cached/out)": _weights_word(entry["weights"]),
        "template kwargs": entry["chat_template_kwargs"], "pool": entry["pool"], "cell": entry["cell"],
        "largest body (bytes)": entry["max_body_bytes"], "takes batches": entry["takes_batches"],
        "created (UTC)": moment("created_ms")(entry),
    })  # fmt: skip


def _weights_word(weights: dict[str, int]) -> str:
    return f"{weights['w_in_mu']}/{weights['w_cached_mu']}/{weights['w_out_mu']} v{weights['version']}"
