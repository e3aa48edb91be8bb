"""Inline media in messages: base64 data only. A product that fetches a caller's URL can be sent to places
that only it can reach.

The cap on the whole body, which is the model's, bounds the size.
"""

import re
from typing import Any

from gateway.errors import InvalidRequest, RemoteMediaDisabled
from gateway.protocol.fields import Checker, anything, check_members, empty, wrong_type

# The cost of an image is only known when it runs; a middling figure for the reservation.
MEDIA_TOKENS_ESTIMATE = 1024

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
AUDIO_FORMATS = ("wav", "mp3")
_DATA_URL = re.compile(
    r"data:(?:image/(?:jpeg|png|gif|webp)|audio/(?:wav|mpeg|mp3|ogg|flac)|video/(?:mp4|webm));base64,",
    re.IGNORECASE,
)
_SOURCE: dict[str, Checker] = {"type": anything, "media_type": anything, "data": anything}
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def check_data_url(param: str, value: Any) -> None:
    """A `data:` URL of an image, a sound or a film, in base64. Every other URL is remote, however it is
    written.
    """
    if type(value) is not str:
        raise wrong_type(param, "a string")
    head = _DATA_URL.match(value)
    if head is None:
        if value[:5].lower() == "data:":
            raise InvalidRequest(f"Invalid '{param}': not a base64 data URL of a known media type.", param)
        raise RemoteMediaDisabled(param)
    _check_base64(param, value, head.end())


def check_base64(param: str, value: Any) -> None:
    """Bare base64."""
    if type(value) is not str:
        raise wrong_type(param, "a string")
    _check_base64(param, value, 0)


def check_anthropic_source(param: str, value: Any) -> None:
    """The `source` of an image block: only `base64`, with a known media type (an engine builds a URL of
    it).
    """
    if type(value) is not dict:
        raise wrong_type(param, "an object")
    if value.get("type") != "base64":
        raise RemoteMediaDisabled(param)
    if value.get("media_type") not in IMAGE_TYPES:
        raise InvalidRequest(
            f"Invalid '{param}.media_type': must be one of {', '.join(IMAGE_TYPES)}.", f"{param}.media_type"
        )
    check_base64(f"{param}.data", value.get("data"))
    check_members(param, value, _SOURCE)


def _check_base64(param: str, value: str, start: int) -> None:
    if len(value) == start:
        raise empty(param)
    if _BASE64.fullmatch(value, start) is None:
        raise InvalidRequest(f"Invalid '{param}': not base64.", param)
