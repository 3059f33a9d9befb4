"""What must never be shown: by a variable's name, as the user part of a URL, or under a telling name in JSON."""

from __future__ import annotations

import json
import re

_NAME = re.compile(r"SECRET|TOKEN(?!IZER)|PASSW|CREDENTIAL|PRIVATE|AUTH|COOKIE|_?KEY(_ID)?$", re.IGNORECASE)
_IN_JSON = re.compile(r"key|secret|token|passw|pwd|credential", re.IGNORECASE)
_USER_OF_URL = re.compile(r"://[^/?#\s]*@")
_SIGNED_URL = re.compile(rf"://\S*[?&][^=&\s]*({_IN_JSON.pattern}|signature|\bsig)[^=&\s]*=", re.IGNORECASE)
# What resembles JSON and is none: a Python dictionary, YAML in one line.
_NEARLY_JSON = re.compile(rf"[{{,]\s*[\"']?[\w.-]*({_IN_JSON.pattern})[\w.-]*[\"']?\s*[:=]", re.IGNORECASE)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is a secret, by its name or by its value."""
    return bool(_NAME.search(name)) or holds_secret(value)


def holds_secret(text: str) -> bool:
    """Whether the text holds a URL with a user or a signature (a token alone is a user too), or JSON with a key,
    secret, token or password at any depth."""
    if _USER_OF_URL.search(text) or _SIGNED_URL.search(text):
        return True
    if text.lstrip()[:1] in ("{", "[") and _NEARLY_JSON.search(text):
        return True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return _named_in(value)


def _named_in(value: object) -> bool:
    if isinstance(value, dict):
        return any(_IN_JSON.search(key) or _named_in(item) for key, item in value.items())
    if isinstance(value, list):
        return any(_named_in(item) for item in value)
    return isinstance(value, str) and holds_secret(value)
