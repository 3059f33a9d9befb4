"""What is said to a robot whose request is not answered: the reason, the field that is wrong, and the HTTP status."""

from __future__ import annotations


class Refusal(ValueError):
    """A request that is not answered. The reason is one sentence; `field` is empty where no single field is wrong."""

    def __init__(self, reason: str, *, field: str = "", status: int = 400) -> None:
        super().__init__(reason)
        self.field, self.status = field, status

    def to_json(self) -> dict[str, str]:
        return {"error": str(self), "field": self.field}
