"""Media: nothing that a caller names is ever fetched."""

from typing import Any

import pytest

from gateway.request import Route
from tests.gateway.protocol.bodies import parse, refusal

REMOTE = [
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/a.png",
    "HTTP://EXAMPLE.COM/a.png",
    "file:///etc/passwd",
    "ftp://example.com/a",
    "//example.com/a.png",
    " data:image/png;base64,AAAA",
    "/etc/passwd",
    "",
]
NOT_MEDIA = [
    "data:text/html;base64,AAAA",
    "data:image/svg+xml;base64,AAAA",
    "data:image/png,AAAA",
    "data:image/png;base64,",
    "data:image/png;base64,http://example.com",
    "data:image/png;base64,AA AA",
]


def chat_with(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url"])
@pytest.mark.parametrize("url", REMOTE)
def test_fault_13_a_remote_url_is_refused_in_chat(kind: str, url: str) -> None:
    error = refusal(Route.CHAT, **chat_with({"type": kind, kind: {"url": url}}))
    assert (error.code, error.param) == ("remote_media_disabled", f"messages[0].content[0].{kind}.url")


@pytest.mark.parametrize("url", NOT_MEDIA)
def test_fault_13_a_data_url_is_base64_of_a_known_type(url: str) -> None:
    assert (
        refusal(Route.CHAT, **chat_with({"type": "image_url", "image_url": {"url": url}})).param
        == "messages[0].content[0].image_url.url"
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": "http://example.com"},
        {"type": "image_url"},
        {"image_url": {"url": REMOTE[0]}},
    ],
)
def test_fault_13_other_spellings_of_an_image_are_refused(part: dict[str, Any]) -> None:
    refusal(Route.CHAT, **chat_with(part))


@pytest.mark.parametrize("kind", ["file", "input_file", "image_file"])
def test_fault_13_files_by_reference_are_refused(kind: str) -> None:
    assert (
        refusal(Route.CHAT, **chat_with({"type": kind, kind: {"file_id": "f"}})).code
        == "remote_media_disabled"
    )


@pytest.mark.parametrize("url", REMOTE)
def test_fault_13_a_remote_url_is_refused_in_responses(url: str) -> None:
    item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    assert refusal(Route.RESPONSES, input=[item]).code == "remote_media_disabled"


@pytest.mark.parametrize(
    "part", [{"type": "input_file", "file_url": "http://x"}, {"type": "input_image", "file_id": "f"}]
)
def test_fault_13_files_are_refused_in_responses_and_in_what_tools_return(part: dict[str, Any]) -> None:
    assert (
        refusal(Route.RESPONSES, input=[{"role": "user", "content": [part]}]).code == "remote_media_disabled"
    )
    output = {"type": "function_call_output", "call_id": "1", "output": [part]}
    assert refusal(Route.RESPONSES, input=[output]).code == "remote_media_disabled"


@pytest.mark.parametrize("route", [Route.MESSAGES, Route.COUNT_TOKENS])
@pytest.mark.parametrize(
    "source",
    [
        {"type": "url", "url": REMOTE[0]},
        {"type": "file", "file_id": "f"},
        {"type": "url"},
        {"url": REMOTE[0]},
    ],
)
def test_fault_13_remote_images_are_refused_in_messages_and_in_what_tools_return(
    route: Route, source: dict[str, Any]
) -> None:
    image = {"type": "image", "source": source}
    assert refusal(route, messages=[{"role": "user", "content": [image]}]).code == "remote_media_disabled"
    result = {"type": "tool_result", "tool_use_id": "1", "content": [image]}
    assert refusal(route, messages=[{"role": "user", "content": [result]}]).code == "remote_media_disabled"


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "image/png;x", "data": "AAAA"},
        {"type": "base64", "media_type": ["image/png"], "data": "AAAA"},
        {"type": "base64", "media_type": "image/png", "data": "http://x"},
    ],
)
def test_anthropics_inline_images_are_exact(source: dict[str, Any]) -> None:
    refusal(Route.MESSAGES, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}])


def test_an_address_beside_an_inline_image_never_reaches_an_engine() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA", "url": "http://x"}
    parsed = parse(
        Route.MESSAGES, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]
    )
    assert "http://x" not in str(parsed.body)
    assert parsed.ignored == ("messages[0].content[0].source.url",)


def test_inline_media_are_taken() -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    parse(Route.CHAT, **chat_with({"type": "image_url", "image_url": {"url": url, "detail": "low"}}))
    parse(Route.CHAT, **chat_with({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}))
    parse(
        Route.RESPONSES,
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}],
    )
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    parse(Route.MESSAGES, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}])


def test_media_belong_to_the_user() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert (
        refusal(Route.CHAT, messages=[{"role": "system", "content": [part]}]).param
        == "messages[0].content[0]"
    )
