"""What the demo offers: the model's entry, its price, and an engine that was there before us. All by the
admin API, all repeatable.
"""

import time
from typing import Any, Final

import httpx

from billing.wire.certificates import checked_by
from billing.wire.routes import TEXT_ROUTES
from deploy.local.admin_api import AdminApi
from deploy.local.progress import Step, StepFailed
from deploy.local.settings import DEFAULT_MODEL, LocalSettings
from serving.catalogue import known_models

# USD per million tokens: made up, so that the first bill is not zero.
DEMO_PRICE: Final = {"input": "0.10", "cached_input": "0.05", "output": "0.40"}
# What vLLM would say if it did not say it.
_CONTEXT_TOKENS: Final = 4096


def model_entry(settings: LocalSettings) -> dict[str, Any]:
    """The entry to make. With TAAS_ENGINE_URL it is what that engine serves. Raises StepFailed."""
    if settings.engine_url is not None:
        return _entry_of_engine(settings)
    name = settings.model or DEFAULT_MODEL
    known = known_models().get(name)
    if known is None:
        raise StepFailed(
            f"nothing is known of a model {name!r}; known: {', '.join(sorted(known_models()))}",
            "Unset TAAS_MODEL, or serve it by hand: `taas model add`, then `taas worker MODEL --path "
            "FOLDER`.",
        )
    entry = known.entry_fields()
    if not settings.pooling:
        entry["routes"] = [route for route in entry["routes"] if route in TEXT_ROUTES]
    return entry


def ensure_model(admin: AdminApi, entry: dict[str, Any], step: Step) -> dict[str, Any]:
    """The entry as it is there now, with a price if it had none. What an operator changed since stays."""
    name = entry["name"]
    there = admin.find("models", name=name)
    if there is None:
        there = admin.post("models", **entry)
    elif there["status"] != "active":
        raise StepFailed(f"model {name} is retired", f"taas model set {name} --status active")
    if not admin.rows("prices", model=name):
        admin.post("prices", model=name, **DEMO_PRICE)
    step.result = f"{name}: {_price_now(admin.rows('prices', model=name))}"
    return there


def _price_now(prices: list[dict[str, Any]]) -> str:
    """Of a model for all classes, without a contract."""
    now_ms = time.time() * 1000
    held = [
        each
        for each in prices
        if each["class"] is None and each["contract"] is None and each["from_ms"] <= now_ms
    ]
    if not held:
        return "its price begins later"
    price = max(held, key=lambda each: (each["from_ms"], each["price_id"]))
    return f"${price['input']} in, ${price['output']} out per million tokens"


def ensure_instance(admin: AdminApi, settings: LocalSettings, model: str, step: Step) -> dict[str, Any]:
    """The engine of TAAS_ENGINE_URL as an instance of the model."""
    assert settings.engine_url is not None
    url = _base(settings.engine_url)
    there = admin.find("instances", url=url)
    if there is not None and there["model"] != model:
        raise StepFailed(
            f"{url} is an instance of {there['model']}", f"taas instance remove {there['instance']}"
        )
    key = {"key": settings.engine_key} if settings.engine_key else {}
    added = there or admin.post("instances", model=model, url=url, **key)
    step.result = f"{added['instance']} at {url}"
    return added


def _entry_of_engine(settings: LocalSettings) -> dict[str, Any]:
    assert settings.engine_url is not None
    url = f"{_base(settings.engine_url)}/v1/models"
    headers = {"authorization": f"Bearer {settings.engine_key}"} if settings.engine_key else {}
    try:
        answer = httpx.get(url, headers=headers, timeout=5, trust_env=False, verify=checked_by(url))
        served = answer.raise_for_status().json()["data"]
        first = next((model for model in served if model["id"] == settings.model), served[0])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as exc:
        why = f"the engine of TAAS_ENGINE_URL does not list its models: {exc}"
        raise StepFailed(why, "Start it, correct the URL, or give its key in TAAS_ENGINE_KEY.") from exc
    context = first.get("max_model_len") or _CONTEXT_TOKENS
    return {"name": settings.model or first["id"], "engine_model": first["id"], "context_tokens": context}


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
