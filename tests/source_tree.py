"""The repository's files as the tests about its shape see them: those that git tracks, and what is in
them.
"""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "serving", "billing", "loadtest", "deploy")


@dataclass(frozen=True)
class Source:
    """One Python file: its path in the repository, its text, its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """As it is imported."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """Its top folder."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]

    def walk(self, kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[ast.AST]:
        """Every node of a kind."""
        return (node for node in self._nodes if isinstance(node, kind))

    @cached_property
    def _nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(self.tree))


@cache
def tracked() -> tuple[str, ...]:
    """Every file of the repository that is there, and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return tuple(path for path in sorted(set(listed.split("\0"))) if path and (ROOT / path).is_file())


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the packages and the tests."""
    wanted = (*PACKAGES, "tests")
    paths = [path for path in tracked() if path.endswith(".py") and path.partition("/")[0] in wanted]
    found = []
    for path in paths:
        text = (ROOT / path).read_text(encoding="utf-8")
        found.append(Source(path, text, ast.parse(text, path)))
    return tuple(found)


def text_of(path: str) -> str:
    """A tracked file's text."""
    return (ROOT / path).read_text(encoding="utf-8")


def tell(findings: list[str], rule: str) -> str:
    """What a failing test says: the rule, and every place that breaks it."""
    return f"{rule}\n  " + "\n  ".join(findings)
