"""Who may ask: callers with the token, and no page of another site in a browser on this machine."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.serving.refusal import Refusal

TOKEN = "RTP_SERVE_TOKEN"
"""The environment variable that holds the token, of the server and of its clients here."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """`token`: what `Authorization: Bearer TOKEN` (or openpi's `Api-Key TOKEN`) must hold; None lets everyone in.

    `host_names`: names by which the server may be called beside localhost and bare addresses; None: by any. A site that
    lets its own name point at this machine (DNS rebinding) makes a browser here call the server by that name.
    """

    token: str | None = None
    host_names: tuple[str, ...] | None = None

    def require(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal: 401 without the token, 403 for a request from another site's page, 421 for another name."""
        self.require_name(headers)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise Refusal(f"a page of {origin:.100} may not use this server", status=403)
        if self.token is None:
            return
        scheme, _, sent_token = headers.get("authorization", "").partition(" ")
        known_scheme = scheme.lower() in ("bearer", "api-key")
        if not known_scheme or not hmac.compare_digest(sent_token.strip().encode(), self.token.encode()):
            raise Refusal("this server wants its token: send the header Authorization: Bearer TOKEN", status=401)

    def require_name(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal (421) for a request to a name that is not this server's."""
        if self.host_names is None:
            return
        name = host_name(headers.get("host", ""))
        if name not in ("", "localhost", *self.host_names) and not _is_address(name):
            raise Refusal(
                f"this server does not answer to the name {name:.100}: call it as localhost, or start it with "
                f"--host-names {name:.100}",
                status=421,
            )


def host_name(host: str) -> str:
    """Of a Host header, without the port, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
