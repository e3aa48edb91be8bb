"""Promises of an engine's log: what is told of it when a start fails."""

from pathlib import Path

from serving import engine_log
from serving.engine_log import last_message, telling_lines

# From vLLM 0.32: a folder whose weights are cut short.
BAD_WEIGHTS = """\
(APIServer pid=1) WARNING 11-24 04:05:00 [x.py:1] Found ulimit of 20000 (fd limit errors like `OSError: [Errno 24] Too many open files`).
(EngineCore pid=2) INFO 11-24 04:05:01 [cpu.py:1] libtcmalloc is not found in LD_PRELOAD.
(Worker pid=3) ERROR 11-24 04:05:09 [multiproc_executor.py:1] Traceback (most recent call last):
(Worker pid=3) ERROR 11-24 04:05:09 [multiproc_executor.py:1]   File "x.py", line 1, in f
(Worker pid=3) ERROR 11-24 04:05:09 [multiproc_executor.py:1] safetensors._safetensors_rust.SafetensorError: Error while deserializing header
(EngineCore pid=2) ERROR 11-24 04:05:09 [core.py:1] safetensors._safetensors_rust.SafetensorError: Error while deserializing header
(EngineCore pid=2) Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
# And a context longer than the model's.
BAD_CONTEXT = """\
    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len
    For further information visit a page
"""


def test_the_first_cause_is_told_once_and_warnings_are_not_taken_for_it() -> None:
    assert telling_lines(BAD_WEIGHTS) == [
        "safetensors._safetensors_rust.SafetensorError: Error while deserializing header"
    ]


def test_a_refused_setting_is_told_with_its_reason() -> None:
    assert telling_lines(BAD_CONTEXT) == [
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len",
    ]


def test_an_unknown_flag_is_told() -> None:
    assert telling_lines(
        "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --nonsense\n"
    ) == ["api_server.py: error: unrecognized arguments: --nonsense"]


def test_without_an_error_the_last_lines_are_told() -> None:
    assert telling_lines("\n".join(f"line {number}" for number in range(20)))[-1] == "line 19"


def test_progress_shows_the_newest_line_without_its_prefix() -> None:
    assert (
        last_message("(APIServer pid=1) INFO 11-24 04:00:00 [weight_utils.py:1] Loading weights took 2 s\n\n")
        == "Loading weights took 2 s"
    )
    assert last_message("") == ""


def test_a_log_past_its_limit_is_put_aside_and_a_small_one_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "engine.log"
    engine_log.rotate(log)
    log.write_bytes(b"small")
    engine_log.rotate(log)
    assert log.read_bytes() == b"small"
    log.write_bytes(b"x" * (engine_log.LOG_BYTES_MAX + 1))
    engine_log.rotate(log)
    assert log.read_bytes() == b""
    assert log.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "logs" / "engine.log.1").stat().st_size == engine_log.LOG_BYTES_MAX + 1


def test_only_what_this_start_wrote_is_read(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("RuntimeError: of last time\nRuntimeError: of this time\n")
    assert engine_log.read_since(log, len("RuntimeError: of last time\n")) == "RuntimeError: of this time\n"


def test_a_log_that_is_empty_tells_nothing() -> None:
    assert telling_lines("") == []
