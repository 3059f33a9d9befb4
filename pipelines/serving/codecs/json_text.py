"""JSON from the network, whose texts can be sent and written down again."""

from __future__ import annotations

import json

from pipelines.serving.refusal import Refusal


def parsed(body: bytes | str) -> object:
    """The value. Raises Refusal for what is not JSON, and for half of a character (`"\\ud800"`): Python reads it, but
    no answer, log or file that repeats it could be written."""
    try:
        text = body.decode(json.detect_encoding(body)) if isinstance(body, bytes) else body
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the request is not JSON ({error!s:.100})") from None
    return value
