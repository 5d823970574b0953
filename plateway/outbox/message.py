"""The shapes of a message: a CloudEvent in JSON, and the flat fields of DLM v2's Redis streams."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any
from uuid import UUID

from plateway.catalog.outbox import Message
from plateway.outcome import Fact

STREAMS = {Fact.REGISTERED: "dlm:new-imaging-event", Fact.EXPORTED: "dlm:new-export"}
PUBLISHER = "plateway"  # our own bridge passes over entries with it


def cloud_event(message: Message, *, site: UUID) -> dict[str, Any]:
    """Return a message as a CloudEvent 1.0 (https://cloudevents.io); ``source`` and ``id`` together are unique."""
    event = message.event
    return {
        "specversion": "1.0",
        "id": str(message.id),
        "source": f"urn:uuid:{site}",
        "type": f"plateway.imaging-event.{message.fact}",
        "subject": str(event.id),
        "time": _format_time(message.at),
        "datacontenttype": "application/json",
        "data": {
            "ref_id": str(event.id),
            "revision": event.revision,
            "system": event.system,
            "type": event.kind,
            "experiment_id": event.experiment,
            "timestamp": _format_time(event.timestamp),
            "img_count": event.image_count,
            **message.details,
        },
    }


def encode(message: Message, *, site: UUID) -> bytes:
    """Encode a message as a CloudEvent in JSON: the same bytes for each delivery."""
    return json.dumps(cloud_event(message, site=site), ensure_ascii=True, separators=(",", ":")).encode()


def stream_entry(message: Message) -> tuple[str, dict[str, str]] | None:
    """Return the stream of a message and its fields, as DLM v2 writes them; None if DLM has no such message.

    Two further fields, ``message_id`` and ``publisher``, are ours.
    """
    stream = STREAMS.get(message.fact)
    if stream is None:
        return None
    event, details = message.event, message.details
    if message.fact is Fact.REGISTERED:
        fields = {
            "experiment_id": event.experiment,
            "timestamp": _format_time(event.timestamp),
            "type": event.kind,
            "system": event.system,
            "local_path": event.path,
            "img_count": str(event.image_count),
            "metadata": json.dumps(event.details),
        }
    else:
        fields = {
            "checksum": json.dumps({"hex": details["sha256"], "algorithm": "sha256"}),
            "size": str(details["size"]),
            "key": details["key"],
            "timestamp": details["uploaded_at"],
        }
    return stream, {"ref_id": str(event.id), **fields, "message_id": str(message.id), "publisher": PUBLISHER}


def _format_time(time: Any) -> str:
    return str(time.astimezone(UTC).isoformat())
