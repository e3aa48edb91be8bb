"""What the worker asks its own engine over HTTP: health, metrics, and one tiny generation. It knows no
process and no registry.
"""

from types import TracebackType
from typing import Final

import httpx

from billing.wire.certificates import checked_by
from billing.wire.instance_entry import REQUEST_COUNTS_PATH
from billing.wire.routes import smallest_request
from billing.wire.tokens import CounterPair
from serving.engine_metrics import EngineReading, parse_metrics
from serving.served_model import ServedModel

# An engine under full load on a small CPU answers /metrics in up to a second or two.
ANSWER_TIMEOUT_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 120.0
# It reads the files and copies them to where it computes.
_LOADING_TIMEOUT_S: Final = 120.0


class EngineUnanswering(Exception):
    """The engine gave no usable answer; the text says to what and why."""


class EngineClient:
    """One engine, with its key. Proxies of the environment are not used."""

    def __init__(self, url: str, key: str, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=answer_timeout_s,
            trust_env=False,
            verify=checked_by(url),
        )

    async def __aenter__(self) -> "EngineClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def is_healthy(self) -> bool:
        """False if it answers that it is unhealthy (vLLM: its engine core is dead). Raises EngineUnanswering
        if it does not answer.
        """
        return (await self._get("/health")).status_code == 200

    async def reading(self) -> EngineReading:
        """Load and counters now. Raises EngineUnanswering."""
        response = await self._get("/metrics")
        if response.status_code != 200:
            raise EngineUnanswering(f"/metrics answered {response.status_code}")
        try:
            return parse_metrics(response.text)
        except ValueError as exc:
            raise EngineUnanswering(str(exc)) from exc

    async def counts_requests(self) -> bool:
        """Whether it tells what each request has produced. Raises EngineUnanswering."""
        return (await self._get(REQUEST_COUNTS_PATH)).status_code == 200

    async def version(self) -> str:
        """The engine's own; empty if it does not tell. Raises EngineUnanswering."""
        response = await self._get("/version")
        try:
            return str(response.json()["version"]) if response.status_code == 200 else ""
        except (ValueError, KeyError, TypeError):
            return ""

    async def probe(self, model: ServedModel) -> CounterPair:
        """Have the model produce one token (or one embedding); returns its cost. Raises EngineUnanswering if
        nothing comes out.
        """
        route = smallest_request(model.routes)
        path, extra = route.path, route.smallest
        assert extra is not None
        try:
            response = await self._http.post(
                path, json={"model": model.engine_model, **extra}, timeout=_PROBE_TIMEOUT_S
            )
        except httpx.HTTPError as exc:
            raise EngineUnanswering(f"{path}: {exc!r}") from exc
        if response.status_code != 200:
            raise EngineUnanswering(f"{path} answered {response.status_code}: {response.text[:300]}")
        try:
            usage = response.json()["usage"]
            cost = CounterPair(
                prompt=int(usage["prompt_tokens"]), generation=int(usage.get("completion_tokens") or 0)
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise EngineUnanswering(f"{path} answered without usage: {exc!r}") from exc
        if model.generates and cost.generation < 1:
            raise EngineUnanswering(f"{path} produced no token")
        return cost

    async def load_adapter(self, name: str, folder: str) -> None:
        """Raises EngineUnanswering unless the engine has it now."""
        await self._post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, _LOADING_TIMEOUT_S
        )

    async def unload_adapter(self, name: str) -> None:
        """The same, without it. Requests that use it go on. Raises EngineUnanswering."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name}, ANSWER_TIMEOUT_S)

    async def _post(self, path: str, body: dict[str, str], timeout_s: float) -> None:
        try:
            response = await self._http.post(path, json=body, timeout=timeout_s)
        except httpx.HTTPError as exc:
            raise EngineUnanswering(f"{path}: {exc!r}") from exc
        if response.status_code != 200:
            raise EngineUnanswering(f"{path} answered {response.status_code}: {response.text[:300]}")

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(path)
        except httpx.HTTPError as exc:
            raise EngineUnanswering(f"{path}: {exc!r}") from exc
