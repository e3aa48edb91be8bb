"""A caller's reading of a stream agrees with the engine, in every dialect, however the stream ends."""

import pytest

from loadtest.stream_reading import StreamReading
from tests.fixtures.engine import SimEngine
from tests.loadtest.test_engine_answers import BODIES

USAGE = {"stream_options": {"include_usage": True}}


def read(text: str) -> StreamReading:
    reading = StreamReading()
    for line in text.encode().split(b"\n"):
        reading.feed(line)
    return reading


@pytest.mark.parametrize("path", BODIES)
def test_every_dialect_is_read_to_its_end(engine: SimEngine, path: str) -> None:
    body = BODIES[path] | {"stream": True} | (USAGE if path.endswith("completions") else {})
    reading = read(engine.post(path, body, x_request_id="one").text)
    truth = next(iter(engine.truth().values()))
    assert (reading.usage, reading.text_events, reading.ended, reading.error) == (
        (truth["prompt"], truth["output"]),
        7,
        True,
        None,
    )


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_that_stops_without_its_end_has_not_ended(engine: SimEngine, path: str) -> None:
    engine.faults("end_without_done", 4)
    reading = read(engine.post(path, BODIES[path] | {"stream": True}).text)
    assert (reading.text_events, reading.ended) == (4, False)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (
            'data: {"error": {"message": "m", "type": "server_error", "param": null, "code": "engine_died"}}',
            "engine_died",
        ),
        (
            'event: error\ndata: {"type": "error", "error": {"type": "api_error", "message": "m"}}',
            "api_error",
        ),
        (
            'event: error\ndata: {"type": "error", "code": "engine_died", "message": "m", "param": null, '
            '"sequence_number": 3}',
            "engine_died",
        ),
    ],
)
def test_errors_are_read_in_every_dialect(text: str, code: str) -> None:
    assert read(text).error == code
