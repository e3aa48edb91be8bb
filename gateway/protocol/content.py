"""The contents of OpenAI's chat messages: a string, or typed parts. It returns sizes for the estimate; it
knows messages, no routes.
"""

from typing import Any

from gateway.errors import InvalidRequest, RemoteMediaDisabled, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    array,
    cache_mark,
    check_members,
    empty,
    mapping,
    missing,
    one_of,
    string,
    wrong_type,
)
from gateway.protocol.media import AUDIO_FORMATS, MEDIA_TOKENS_ESTIMATE, check_base64, check_data_url
from gateway.protocol.text_size import BYTES_PER_TOKEN, text_bytes

PARTS_MAX = 512
MEDIA_PARTS_MAX = 16
MEDIA_BYTES = MEDIA_TOKENS_ESTIMATE * BYTES_PER_TOKEN

_IMAGE: dict[str, Checker] = {"url": check_data_url, "detail": one_of("auto", "low", "high", "original")}
_URL: dict[str, Checker] = {"url": check_data_url}
_AUDIO: dict[str, Checker] = {"data": check_base64, "format": one_of(*AUDIO_FORMATS)}
_MEDIA: dict[str, tuple[dict[str, Checker], tuple[str, ...]]] = {
    "image_url": (_IMAGE, ("url",)),
    "audio_url": (_URL, ("url",)),
    "video_url": (_URL, ("url",)),
    "input_audio": (_AUDIO, ("data", "format")),
}
_TEXT = {"text": "text", "refusal": "refusal"}
# Prefixes are cached without marks.
_PART: dict[str, Checker] = {"type": string(), "cache_control": cache_mark}
_TEXT_FIELDS = {kind: {**_PART, member: string()} for kind, member in _TEXT.items()}
# Parts that only exist elsewhere: by reference, or as tensors.
_ELSEWHERE = frozenset({"file", "image_file", "input_file"})


def check_content(param: str, content: Any, *, media: bool = True) -> int:
    """A string or a list of parts; its size in bytes of text, media counted at a flat rate."""
    if type(content) is str:
        return text_bytes(content)
    if type(content) is not list:
        raise wrong_type(param, "a string or an array of parts")
    if not content:
        raise empty(param)
    size = media_parts = 0
    for index, part in enumerate(array(param, content, PARTS_MAX)):
        where = f"{param}[{index}]"
        kind = mapping(where, part).get("type")
        if type(kind) is not str:
            raise missing(f"{where}.type")
        if (member := _TEXT.get(kind)) is not None:
            check_members(where, part, _TEXT_FIELDS[kind], (member,))
            size += text_bytes(part[member])
        elif kind in _MEDIA:
            media_parts += 1
            if not media or media_parts > MEDIA_PARTS_MAX:
                raise InvalidRequest(
                    f"Invalid '{where}': {'too many media parts' if media else 'only text is allowed here'}.",
                    where,
                )
            _check_media(where, part, kind)
            size += MEDIA_BYTES
        elif kind in _ELSEWHERE:
            raise RemoteMediaDisabled(where)
        else:
            raise UnsupportedParameter(
                f"{where}.type", "Known are text, refusal, image_url, input_audio, audio_url and video_url."
            )
    return size


def _check_media(where: str, part: dict[str, Any], kind: str) -> None:
    fields, required = _MEDIA[kind]

    def check(param: str, value: Any) -> None:
        check_members(param, value, fields, required)

    check_members(where, part, {**_PART, kind: check}, (kind,))
