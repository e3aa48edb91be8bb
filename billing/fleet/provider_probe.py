"""Asks a provider, before its instance is added, whether it takes the key and knows the model. It costs
nothing: a provider bills what it generates, and this only reads its list of models.
"""

from typing import Final
from urllib.parse import quote

import httpx

from billing.catalogue.instances import EngineFacts
from billing.fleet.engine_probe import Answer, Probe, ask, epoch_now, listed_models
from billing.refusals import Unreachable
from billing.wire.engine_kinds import key_headers

_NAMES_SHOWN_CHARS: Final = 300


def probe_provider(client: httpx.Client, kind: str, url: str, key: str, engine_model: str) -> Probe:
    """Raises `refusals.Unreachable` if it does not answer, refuses the key, or does not know the model."""
    headers = key_headers(kind, key)
    address = f"{url}/v1/models"
    answer = ask(client, "GET", f"{address}/{quote(engine_model, safe='')}", headers)
    _check_key(answer, address)
    if answer.status == 200:
        return Probe(provider_facts(), ())
    # Some providers tell nothing of a single model.
    whole = ask(client, "GET", address, headers)
    _check_key(whole, address)
    listed = listed_models(whole.body) if whole.status == 200 else None
    if listed is None:
        if answer.status == whole.status == 404:
            return Probe(provider_facts(), ("It has no /v1/models, so neither key nor model is proven.",))
        raise Unreachable(
            f"{address} answers HTTP {whole.status} and no list of models. `--force` adds it all the same.",
            param="url", code="engine_refused",
        )  # fmt: skip
    if engine_model not in listed:
        names = ", ".join(sorted(listed))[:_NAMES_SHOWN_CHARS] or "none"
        raise Unreachable(
            f"{url} does not know the model {engine_model!r} but: {names}. Give its name there with "
            "`--engine-model`; `--force` adds it all the same.",
            param="engine_model", code="engine_refused",
        )  # fmt: skip
    return Probe(provider_facts(), ())


def provider_facts() -> EngineFacts:
    """What is known of any provider: it cannot stop a request by id, and counts nothing for us."""
    return EngineFacts(
        epoch=epoch_now(), abort=False, baseline_prompt=0, baseline_generation=0, has_counters=False
    )


def _check_key(answer: Answer, address: str) -> None:
    if answer.status in {401, 403}:
        raise Unreachable(
            f"{address} refuses the key given (HTTP {answer.status}).", param="key", code="engine_refused"
        )
