"""The state of a target of messages, for ``plateway status`` and ``plateway outbox``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.text import Text

from plateway.catalog.outbox import Backlog


def backlog_as_dict(backlog: Backlog, now: datetime) -> dict[str, Any]:
    """Convert the state of a target to plain values for JSON."""
    target = backlog.target
    return {
        "target": target.name,
        "pending": backlog.pending,
        "oldest_seconds": backlog.age(now).total_seconds(),
        "delivered_at": target.delivered_at and target.delivered_at.isoformat(),
        "error": target.error,
        "error_at": target.error_at and target.error_at.isoformat(),
        "registered_at": target.registered_at.isoformat(),
    }


def format_backlog(backlog: Backlog, now: datetime) -> Text:
    """Format the state of a target as one line."""
    target, age = backlog.target, backlog.age(now).total_seconds()
    pending = f"{backlog.pending:,} pending, the oldest for {age:,.0f} s" if backlog.pending else "nothing pending"
    text = Text(f"messages to {target.name}: {pending}")
    return text.append(f"; {target.error}", style="red") if target.error else text
