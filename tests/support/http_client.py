"""A request to a server that is still starting."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any


def post_until_up(url: str, body: dict[str, Any], *, deadline_s: float) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    ends = time.monotonic() + deadline_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert time.monotonic() < ends
            time.sleep(0.5)
