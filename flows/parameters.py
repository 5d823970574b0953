"""Types of the flows' parameters: what Prefect checks, and shows in its forms, before a run begins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MANY = 10_000  # events that one run may be asked for by name

Fraction = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="largest share (above 0, up to 1) of a system's events that this run may remove: 0.1 is 10 %",
    ),
]
System = Annotated[str, Field(min_length=1, max_length=255, description="the name of a system on the bench")]
Systems = Annotated[
    list[System], Field(min_length=1, max_length=1000, description="only these systems; left out: all of them")
]
EventId = Annotated[
    str, Field(min_length=1, max_length=100, description="an event by its id, or `<id>-r2` for a later announcement")
]
EventIds = Annotated[list[EventId], Field(max_length=MANY, description="events by id; empty: all that are due")]
NamedEvents = Annotated[list[EventId], Field(min_length=1, max_length=MANY, description="events by id, at least one")]
