"""Who may ask: callers with the token, and no page of another site in a browser on this machine."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.serving.refusal import Refusal

TOKEN = "RTP_SERVE_TOKEN"
"""The environment variable that holds the token, of the server and of its clients here."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """`token`: what `Authorization: Bearer TOKEN` (or openpi's `Api-Key TOKEN`) must hold; None lets everyone in."""

    token: str | None = None

    def require(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal: 401 without the token, 403 for a request from another site's page."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise Refusal(f"a page of {origin:.100} may not use this server", status=403)
        if self.token is None:
            return
        scheme, _, sent_token = headers.get("authorization", "").partition(" ")
        known_scheme = scheme.lower() in ("bearer", "api-key")
        if not known_scheme or not hmac.compare_digest(sent_token.strip().encode(), self.token.encode()):
            raise Refusal("this server wants its token: send the header Authorization: Bearer TOKEN", status=401)
