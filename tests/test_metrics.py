"""Every metric is fed: one that nothing counts is 0 for ever, and whoever watches it is deceived."""

import ast
from collections.abc import Iterator

import pytest

from tests.source_tree import Source, sources, tell

# What makes a series say something. One that is only taken from, or removed, says nothing.
FEEDS = {"inc", "set", "observe", "set_function", "add_metric"}
# What is called by no code of ours: a registry, and whoever makes an object.
CALLED_ANYWAY = {"collect", "__init__", "__post_init__"}


class Package:
    """The source files of one package, and what their names stand for. A metric is followed by the name that
    it is given, in whatever object: `self._waits`, `metrics.reaped`, a local variable.
    """

    def __init__(self, files: list[Source]) -> None:
        self._files = files
        self._functions = {
            (source.path, node.name): node
            for source in files
            for node in source.walk((ast.FunctionDef, ast.AsyncFunctionDef))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        self._also_called = self._read_other_names()
        called = self._read_called()
        self._fed: set[str | None] = set()
        self._fed_at_first: set[str | None] = set()
        for source in files:
            for function, node in in_functions(source):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr not in FEEDS or (_is_metrics(source) and function not in called):
                    continue
                first = _is_metrics(source) and function == "__init__"
                (self._fed_at_first if first else self._fed).add(name_of(node.func.value))

    def unfed(self) -> Iterator[str]:
        """Every metric that nothing feeds, and those that cannot be followed."""
        for source in filter(_is_metrics, self._files):
            named = set()
            for node in source.walk(ast.Assign):
                assert isinstance(node, ast.Assign)
                for call in filter(defines, ast.walk(node.value)):
                    named.add(id(call))
                    if not self._is_fed(name_of(node.targets[0]), metric=ast.unparse(call.args[0])):
                        yield f"{source.path}:{call.lineno} {ast.unparse(call.args[0])}"
            for call in filter(defines, ast.walk(source.tree)):
                if id(call) not in named:
                    yield f"{source.path}:{call.lineno} {ast.unparse(call.args[0])} is given no name"

    def _is_fed(self, name: str | None, metric: str) -> bool:
        """A first value is not enough, but for information that does not change."""
        names = {name, *self._also_called.get(str(name), ())}
        fed = self._fed | self._fed_at_first if metric.endswith("_info'") else self._fed
        return not names.isdisjoint(fed)

    def _read_other_names(self) -> dict[str, set[str]]:
        """What else a series is called: `up = metrics.up.labels("x")`, `Row(up=self._up.labels("x"))`, or the
        parameter of a function that is given it.
        """
        found: dict[str, set[str]] = {}

        def note(value: ast.expr, other: str | None) -> None:
            name = name_of(value)
            if name and other and name != other:
                found.setdefault(name, set()).add(other)

        for source in self._files:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Assign):
                    note(node.value, name_of(node.targets[0]))
                elif isinstance(node, ast.Call):
                    for keyword in node.keywords:
                        note(keyword.value, keyword.arg)
                    function = self._functions.get((source.path, str(name_of(node.func))))
                    if function is not None:
                        parameters = [each.arg for each in function.args.args if each.arg != "self"]
                        for value, parameter in zip(node.args, parameters, strict=False):
                            note(value, parameter)
        return found

    def _read_called(self) -> set[str]:
        """Methods that are called, or handed on, from outside the modules of metrics (on an object whose name
        says that it is one of metrics); and whatever those call.
        """
        called, todo = set(), set(CALLED_ANYWAY)
        inside: dict[str, set[str]] = {}
        for source in self._files:
            for function, node in in_functions(source):
                if not isinstance(node, ast.Attribute):
                    continue
                if _is_metrics(source):
                    inside.setdefault(function, set()).add(node.attr)
                elif "metrics" in ast.unparse(node.value):
                    todo.add(node.attr)
        while todo:
            function = todo.pop()
            called.add(function)
            todo |= inside.get(function, set()) - called
        return called


def _is_metrics(source: Source) -> bool:
    return source.name.startswith("metrics")


def defines(node: ast.AST) -> bool:
    """Whether this makes a metric: a call whose first argument is one's name."""
    return (
        isinstance(node, ast.Call)
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
        and ast.unparse(node.args[0]).lstrip("f").strip("'\"").startswith("taas_")
    )


def name_of(node: ast.expr) -> str | None:
    """`waits` of `self.waits[asked,]` and of `metrics.waits.labels(asked)`."""
    while True:
        match node:
            case ast.Subscript(value=inner) | ast.Call(func=ast.Attribute(value=inner, attr="labels")):
                node = inner
            case ast.Attribute(attr=name) | ast.Name(id=name):
                return name
            case _:
                return None


def in_functions(source: Source) -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the innermost function that it stands in; outside of any, `__init__`: it
    runs anyway.
    """
    todo: list[tuple[str, ast.AST]] = [("__init__", source.tree)]
    while todo:
        function, node = todo.pop()
        yield function, node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        todo += [(function, child) for child in ast.iter_child_nodes(node)]


@pytest.mark.sources
@pytest.mark.parametrize("package", ["gateway", "billing", "serving"])
def test_every_metric_is_fed(package: str) -> None:
    unfed = list(Package([source for source in sources() if source.package == package]).unfed())
    assert not unfed, tell(unfed, "A metric that nothing feeds tells nothing: feed it, or take it out.")


DEFINED = """
class Metrics:
    def __init__(self):
        self._open = gauge("taas_streams_open", "Streams that are open.", "route")
"""


def made(metrics: str, other: str) -> list[str]:
    texts = {"gateway/metrics.py": DEFINED + metrics, "gateway/app.py": other}
    return list(Package([Source(path, text, ast.parse(text)) for path, text in texts.items()]).unfed())


@pytest.mark.parametrize(
    ("metrics", "other"),
    [
        ("", ""),
        ("", "metrics.open('chat')"),
        ("    def closed(self): self._open.remove('chat')", "metrics.closed()"),
        ("    def closed(self): self._open.labels('chat').dec()", "metrics.closed()"),
        ("        self._open.labels('chat').set(0)", ""),
        ("    def opened(self): self._open.labels('chat').inc()", "events = [event.opened]"),
        ("    def opened(self): self._opened()\n    def _opened(self): self._open['chat',].inc()", ""),
    ],
    ids=["never used", "another's method", "only removed", "only taken from", "a first value",
         "by a method that nobody calls", "by two methods that nobody calls"],
)  # fmt: skip
def test_a_metric_that_nothing_feeds_is_found(metrics: str, other: str) -> None:
    assert made(metrics, other) == ["gateway/metrics.py:4 'taas_streams_open'"]


@pytest.mark.parametrize(
    ("metrics", "other"),
    [
        ("    def opened(self): self._open.labels('chat').inc()", "metrics.opened()"),
        ("    def opened(self): self._opened()\n    def _opened(self): self._open['chat',].inc()",
         "on_open = metrics.opened"),
        ("    def opened(self): self.add(self._open, 2)\n    def add(self, gauge, n): gauge.inc(n)",
         "metrics.opened()"),
        ("", "series = metrics._open.labels('chat')\nseries.inc()"),
    ],
    ids=["by a method", "by a method that is handed on", "by its parameter's name", "from outside"],
)  # fmt: skip
def test_a_metric_that_is_fed_is_not(metrics: str, other: str) -> None:
    assert made(metrics, other) == []


def test_a_metric_that_cannot_be_followed_is_found() -> None:
    text = 'def collect():\n    yield family("taas_things", "Things.", value=1)\n'
    (found,) = Package([Source("billing/metrics.py", text, ast.parse(text))]).unfed()
    assert found == "billing/metrics.py:2 'taas_things' is given no name"
