"""Models that we know how to get and serve, one TOML file each. It describes models; it creates nothing in
billing and fetches nothing.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class GgufWheel:
    """A pinned GGUF file inside a wheel: `gguf` is its path in the wheel, `sha256` the wheel's."""

    package: str
    version: str
    sha256: str
    gguf: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model's entry as it should be created, where its files come from, and what its engine needs beside
    the usual flags.
    """

    name: str
    engine_model: str
    context_tokens: int
    vocabulary_tokens: int
    routes: tuple[str, ...]
    default_max_tokens: int
    chat_template_kwargs: tuple[str, ...]
    engine_args: tuple[str, ...]
    weights: dict[str, int]
    source: GgufWheel

    def entry_fields(self) -> dict[str, Any]:
        """The fields of MODEL (docs/interfaces.md §3) that belong to the model itself; pool, cell and
        visibility are the operator's.
        """
        return {
            "name": self.name,
            "engine_model": self.engine_model,
            "context_tokens": self.context_tokens,
            "vocabulary_tokens": self.vocabulary_tokens,
            "routes": list(self.routes),
            "default_max_tokens": self.default_max_tokens,
            "chat_template_kwargs": list(self.chat_template_kwargs),
            "weights": dict(self.weights),
        }


def known_models() -> dict[str, KnownModel]:
    """The known models by name. A malformed file raises, because it is part of the program."""
    found = {}
    for file in files(__name__).iterdir():
        if file.name.endswith(".toml"):
            fields = tomllib.loads(file.read_text(encoding="utf-8"))
            for name in ("routes", "chat_template_kwargs", "engine_args"):
                fields[name] = tuple(fields[name])
            model = KnownModel(**{**fields, "source": GgufWheel(**fields["source"])})
            found[model.name] = model
    return found
