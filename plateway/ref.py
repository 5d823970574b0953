"""Which event: its id, and the revision where one id was announced with other content again."""

from __future__ import annotations

import re
from typing import NamedTuple
from uuid import UUID

from plateway.errors import NotFound


class Ref(NamedTuple):
    """One event at one revision."""

    id: UUID
    revision: int

    def __str__(self) -> str:
        return str(self.id) if self.revision == 1 else f"{self.id}-r{self.revision}"

    @classmethod
    def parse(cls, text: str) -> tuple[UUID, int | None]:
        """Read ``<uuid>`` (revision None: whatever is newest) or ``<uuid>-r2``.

        Raises:
            NotFound: no event is called that.
        """
        match = re.fullmatch(r"([0-9a-fA-F-]{32,36})(?:-r([1-9]\d{0,8}))?", text.strip())
        try:
            return UUID(match[1] if match else ""), int(match[2]) if match and match[2] else None
        except ValueError as error:
            raise NotFound(f"{text!r} is not the id of an event") from error
