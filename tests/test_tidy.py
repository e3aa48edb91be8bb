"""The rules of the house that a machine can hold. A failure names the rule and every place that breaks it."""

import ast
import re

import pytest

from billing.cell.scripts import SCRIPTS, TENANT_SCRIPTS
from tests.source_tree import PACKAGES, ROOT, Source, sources, tell, text_of, tracked

pytestmark = pytest.mark.sources

LINES_MAX = 500
FUNCTION_LINES_MAX = 70
LUA_LINES_MAX = 250
DECISION_LINES_MAX = 60
POSITIONAL_MAX = 5
# A migration says what was once done: it is never split. `taas-verify` is one file, to be copied as it is.
NOT_SPLIT = ("billing/migrations/versions/", "deploy/taas_verify.py")
VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|managers?)(_|$)")
# What runs inside vLLM has vLLM's environment, and uv has pip's settings.
NOT_OUR_SETTINGS = ("serving/vllm_middleware/", "deploy/local/pip_settings.py")
LOCKS = ("requirements.lock", "serving/vllm-cpu.lock", "deploy/local/uv.lock")
# Assembled, so that this file does not hold them.
REGISTRY_HOSTS = [f"{host}.org" for host in ("pypi", "pythonhosted", "npmjs", "debian", "pytorch")]
WRITTEN_BY = re.compile(
    r"\b[Ii]ssue [A-Z]\b|(?i:\b(?:generated|written) by (?:an? )?(?:ai|llm|assistant|language "
    r"model)\b|co-authored-by)"
)
# Numbers of the faults and bad inputs whose outcome is promised so far: each has a test named
# test_fault_NN_….


def code() -> list[Source]:
    """The product, without its tests."""
    return [source for source in sources() if source.package in PACKAGES]


def test_no_module_holds_two_rooms() -> None:
    long = [
        f"{source.path}: {len(source.text.splitlines())} lines"
        for source in sources()
        if len(source.text.splitlines()) > LINES_MAX and not source.path.startswith(NOT_SPLIT)
    ]
    assert not long, tell(long, f"A module has at most {LINES_MAX} lines; split it by what it owns.")


def test_no_constructor_takes_many_arguments_by_their_place() -> None:
    """Of six values in a row nobody sees, and no type checker says, that two have changed places."""
    wrong = []
    for source in sources():
        for node in source.walk(ast.ClassDef):
            assert isinstance(node, ast.ClassDef)
            if (count := _by_place(node)) > POSITIONAL_MAX:
                wrong.append(f"{source.path}:{node.lineno} {node.name}: {count}")
    assert not wrong, tell(
        wrong, f"A constructor takes at most {POSITIONAL_MAX} arguments by place: kw_only=True, or `*`."
    )


def _by_place(node: ast.ClassDef) -> int:
    """How many arguments its constructor takes by place."""
    for made in node.decorator_list:
        if "dataclass" in ast.unparse(made):
            if isinstance(made, ast.Call) and any(word.arg == "kw_only" for word in made.keywords):
                return 0
            return sum(isinstance(line, ast.AnnAssign) and _is_argument(line) for line in node.body)
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            return len(line.args.posonlyargs) + len(line.args.args) - 1
    return 0


def _is_argument(line: ast.AnnAssign) -> bool:
    if "ClassVar" in ast.unparse(line.annotation):
        return False
    words = line.value.keywords if isinstance(line.value, ast.Call) else []
    return not any(
        word.arg == "kw_only" or (word.arg == "init" and ast.unparse(word.value) == "False") for word in words
    )


def test_no_function_is_too_long() -> None:
    long = []
    for source in sources():
        if source.path.startswith(NOT_SPLIT):
            continue
        for node in source.walk((ast.FunctionDef, ast.AsyncFunctionDef)):
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines >= FUNCTION_LINES_MAX:
                long.append(f"{source.path}:{node.lineno} {node.name}: {lines} lines")
    assert not long, tell(long, f"A function has less than {FUNCTION_LINES_MAX} lines.")


def test_every_module_says_what_it_owns() -> None:
    silent = [
        source.path for source in sources() if source.text.strip() and not ast.get_docstring(source.tree)
    ]
    assert not silent, tell(
        silent, "A module begins with a docstring that says what it owns and what it must not know."
    )


def test_modules_are_named_for_one_thing() -> None:
    vague = [source.path for source in sources() if VAGUE.search(source.name.removesuffix(".py"))]
    assert not vague, tell(vague, "A module is named for what it owns: no utils, helpers, common, manager.")


def test_lua_scripts_are_short_and_say_what_they_take() -> None:
    """A file that begins with what it is given returns functions to others; what is called from outside
    says with what.
    """
    wrong = []
    for path in tracked():
        if not path.endswith(".lua"):
            continue
        text = text_of(path)
        if len(text.splitlines()) > LUA_LINES_MAX:
            wrong.append(f"{path}: {len(text.splitlines())} lines")
        if not text.startswith("--"):
            wrong.append(f"{path}: it does not begin with what it is for")
        if path.startswith("billing/cell/") and path.split("/")[-1].removesuffix(".lua") not in (
            *SCRIPTS,
            *TENANT_SCRIPTS,
        ):
            continue
        header = "\n".join(line for line in text.splitlines() if line.startswith("--"))
        missing = [word for word in ("KEYS", "ARGV", "Returns") if word not in header]
        if missing:
            wrong.append(f"{path}: its header does not name {', '.join(missing)}")
    assert not wrong, tell(
        wrong,
        f"A script has at most {LUA_LINES_MAX} lines; one that is called has a header with KEYS, ARGV and "
        "Returns.",
    )


def test_own_code_is_never_patched() -> None:
    patched = [
        f"{source.path}:{node.lineno}"
        for source in sources()
        for node in source.walk((ast.Attribute, ast.ImportFrom, ast.Import))
        if _is_patch(node)
    ]
    assert not patched, tell(patched, "Tests use real parts or fakes handed in: no mock.patch.")


def _is_patch(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return (
            node.attr == "patch" and isinstance(node.value, ast.Name) and node.value.id in {"mock", "mocker"}
        )
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith("unittest.mock") and any(
            alias.name == "patch" for alias in node.names
        )
    return False


def test_tests_await_conditions() -> None:
    """A fixture may poll while what it starts comes up. A test that is about time passing says why on the
    sleep's line.
    """
    sleeping = []
    for source in sources():
        if source.package != "tests" or "/fixtures/" in source.path or source.name == "conftest.py":
            continue
        for function in source.walk((ast.FunctionDef, ast.AsyncFunctionDef)):
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            if function.name.startswith("test_"):
                lines = source.text.splitlines()
                sleeping += [
                    f"{source.path}:{call.lineno}"
                    for call in _sleeps(function)
                    if "#" not in lines[call.lineno - 1]
                ]
    assert not sleeping, tell(
        sleeping, "A test waits for a condition, not for time; where it must, a comment on the line says why."
    )


def _sleeps(function: ast.AST) -> list[ast.Call]:
    """`time.sleep` anywhere, `asyncio.sleep` of more than a turn of the loop outside of a polling loop."""
    polling = {call for loop in ast.walk(function) if isinstance(loop, ast.While) for call in ast.walk(loop)}
    found = []
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "sleep":
            owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
            turn = bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
            if owner == "time" or (owner == "asyncio" and not turn and call not in polling):
                found.append(call)
    return found


def test_environment_is_read_in_settings_only() -> None:
    reading = [
        f"{source.path}:{node.lineno}"
        for source in code()
        if source.name != "settings.py" and not source.path.startswith(NOT_OUR_SETTINGS)
        for node in source.walk((ast.Attribute, ast.ImportFrom))
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv",
        "environb"} and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and any(alias.name in {"environ",
        "getenv"} for alias in node.names))
    ]  # fmt: skip
    assert not reading, tell(reading, "The environment is read in settings.py, once, at start.")


def test_redis_keys_are_spelled_once() -> None:
    literal = re.compile(r"^(taas:[a-z]|\{c:)")
    spelled = []
    for source in code():
        if source.path == "billing/wire/redis_keys.py" or source.package == "loadtest":
            continue
        docstrings = _docstrings(source)
        for node in source.walk(ast.Constant):
            assert isinstance(node, ast.Constant)
            if isinstance(node.value, str) and literal.match(node.value) and id(node) not in docstrings:
                spelled.append(f"{source.path}:{node.lineno} {node.value!r}")
    assert not spelled, tell(spelled, "Redis keys are spelled in billing/wire/redis_keys.py only.")


def _docstrings(source: Source) -> set[int]:
    """Ids of the constants that are statements of their own."""
    return {id(node.value) for node in source.walk(ast.Expr) if isinstance(node, ast.Expr)}


def test_metrics_are_made_in_one_place() -> None:
    kinds = {"Counter", "Gauge", "Histogram", "Summary"}
    elsewhere = []
    for source in code():
        if source.name.startswith("metrics"):
            continue
        for node in source.walk(ast.ImportFrom):
            assert isinstance(node, ast.ImportFrom)
            if (node.module or "").startswith("prometheus_client") and kinds & {
                alias.name for alias in node.names
            }:
                elsewhere.append(f"{source.path}:{node.lineno}")
    assert not elsewhere, tell(elsewhere, "Counter, Gauge and Histogram are made in a metrics.py.")


def test_metrics_bear_our_name() -> None:
    kinds = {"Counter", "Gauge", "Histogram", "Summary"}
    foreign = []
    for source in code():
        if source.package == "loadtest":
            continue
        for node in source.walk(ast.Call):
            assert isinstance(node, ast.Call)
            if isinstance(node.func, ast.Name) and node.func.id in kinds and node.args:
                name = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
                if (
                    source.name.startswith("metrics")
                    and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
                    and not name.startswith("taas_")
                ):
                    foreign.append(f"{source.path}:{node.lineno} {name}")
    assert not foreign, tell(foreign, "Metrics begin with taas_.")


def test_no_file_names_a_package_host() -> None:
    naming = []
    for path in tracked():
        text = _readable(path)
        naming += [f"{path}: {host}" for host in REGISTRY_HOSTS if host in text]
    assert not naming, tell(
        naming, "Which registry serves packages is the machine's affair: no file names one."
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_every_package_by_hash(lock: str) -> None:
    logical = text_of(lock).replace("\\\n", " ").splitlines()
    pinned = re.compile(r"^[A-Za-z0-9._-]+(\[.*\])?==\S+ .*--hash=sha256:[0-9a-f]{64}")
    wrong = [line[:80] for line in logical if line.strip() and not pinned.match(line)]
    assert not wrong, tell(
        wrong, f"{lock}: every line is name==version with hashes; no options, no URLs, no editable."
    )


def test_the_engine_lock_leaves_torch_to_the_machine() -> None:
    """Beside a CPU torch the registry's torchvision, torchaudio and torchcodec do not import, and vLLM
    fails at start.
    """
    names = {
        line.partition("==")[0] for line in text_of("serving/vllm-cpu.lock").splitlines() if "==" in line
    }
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec"}
    assert {"vllm-cpu", "transformers", "accelerate", "gguf"} <= names


def test_the_lock_covers_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    asked = [*project["dependencies"]]
    for extra in ("local", "load", "test", "check", "build"):
        asked += project["optional-dependencies"][extra]
    names = {_canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in asked}
    pins = [line for line in text_of("requirements.lock").splitlines() if re.match(r"[A-Za-z].*==", line)]
    locked = {_canonical(re.split(r"[\[=]", line)[0]) for line in pins}
    assert names <= locked, tell(
        sorted(names - locked), "pyproject.toml asks for what requirements.lock lacks; run `make lock`."
    )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_nothing_tells_how_it_was_written() -> None:
    telling = []
    for path in tracked():
        if path.endswith(".lock") or path in {"tests/test_tidy.py", "LICENSE"}:
            continue
        for number, line in enumerate(_readable(path).splitlines(), 1):
            if found := WRITTEN_BY.search(line):
                telling.append(f"{path}:{number} {found.group()}")
    assert not telling, tell(telling, "Files speak of the product, not of how they came to be.")


def test_decisions_are_short_and_numbered() -> None:
    wrong, numbers = [], []
    for path in tracked():
        if not path.startswith("docs/decisions/"):
            continue
        name = path.rpartition("/")[2]
        if not re.fullmatch(r"\d{3}-[a-z0-9-]+\.md", name):
            wrong.append(f"{path}: is named NNN-title.md")
            continue
        numbers.append(name[:3])
        lines = len(text_of(path).splitlines())
        if lines > DECISION_LINES_MAX:
            wrong.append(f"{path}: {lines} lines")
    assert not wrong, tell(wrong, f"A decision has at most {DECISION_LINES_MAX} lines.")
    assert len(numbers) == len(set(numbers)), f"two decisions bear one number: {sorted(numbers)}"


def _readable(path: str) -> str:
    try:
        return text_of(path)
    except UnicodeDecodeError:
        return ""


def test_every_fault_is_written_down_and_tried() -> None:
    rows = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    promised = {int(found.group(1)) for row in rows if (found := re.match(r"\| (\d+) \|", row))}
    tried: dict[int, str] = {}
    for source in sources():
        for function in source.walk((ast.FunctionDef, ast.AsyncFunctionDef)):
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            if found := re.match(r"test_fault_(\d\d)_", function.name):
                tried.setdefault(int(found.group(1)), source.path)
    missing = [f"fault {number:02}" for number in sorted(promised - tried.keys())]
    assert not missing, tell(missing, "Every fault of docs/faults.md has a test named test_fault_NN_…")
    unknown = [f"{tried[number]}: fault {number:02}" for number in sorted(tried.keys() - promised)]
    assert not unknown, tell(unknown, "Every number of a test_fault_NN_… is a row of docs/faults.md.")


def test_migrations_follow_each_other() -> None:
    """Two that were made at the same time may both follow the last one: then no database can be upgraded."""
    names = sorted(path.split("/")[-1] for path in tracked() if path.startswith(NOT_SPLIT) and "/0" in path)
    numbers = [name[:4] for name in names]
    assert numbers == [f"{number:04}" for number in range(1, len(names) + 1)]
    for name, before in zip(names[1:], numbers, strict=False):
        text = text_of(f"{NOT_SPLIT[0]}{name}")
        assert f'\nrevision = "{name[:4]}"\ndown_revision = "{before}"\n' in text, name
