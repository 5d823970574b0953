"""What operators ask for on the page of an event: export it again, replay its announcement, restore its images.

A form needs a token with the scope ``operate``; the reason and the token's name become part of the event's history.
Nothing is moved or deleted here: a replay is recorded in the catalogue, and runs of Prefect's deployments do the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

import httpx
from anyio import to_thread
from fastapi import FastAPI, Request, Response

from plateway.errors import Rejected, Unavailable
from plateway.events import Ref
from plateway.gateway import auth
from plateway.gateway.access import request_info
from plateway.gateway.pages import login, rendering
from plateway.gateway.tokens import Token
from plateway.ledger import Ledger
from plateway.pipeline import Site
from plateway.prefect_api import open_client
from plateway.settings import PrefectApi

SHORTEST, LONGEST = 3, 500  # characters of a reason
SECONDS = 10.0  # for each request to Prefect
PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds after each answer that Prefect is busy
TAGS = ["plateway", "by-hand"]

log = logging.getLogger(__name__)


class Action(NamedTuple):
    """Something that an operator may ask for."""

    name: str
    title: str
    effect: str
    flow: str | None = None  # None: the catalogue records it, without a run
    parameters: dict[str, Any] = {}  # noqa: RUF012  constants


ACTIONS = (
    Action("replay", "Replay", "its announcement and images are read again as if they were new"),
    Action("export", "Export again", "its images are read from the bench and sent again", "export", {"force": True}),
    Action(
        "verify",
        "Read back",
        "every byte of the copy in the bucket is read and compared",
        "verify",
        {"read_back": True},
    ),
    Action(
        "restore",
        "Restore to the bench",
        "its images are written back to the instrument's disk",
        "restore",
        {"to_bench": True},
    ),
)


def install(app: FastAPI, site: Site) -> None:
    """Add the form's route to an application."""

    async def act(id: str, request: Request, token: Annotated[Token, auth.OPERATOR]) -> Response:  # noqa: A002
        form = await login.parse_form(request)
        return await to_thread.run_sync(_perform, site, request, id, token, form)

    app.router.add_api_route(
        "/events/{id}/actions",
        act,
        methods=["POST"],
        include_in_schema=False,
        response_model=None,
        route_class_override=rendering.PageRoute,
    )


def offered(request: Request, ledger: Ledger) -> list[Action]:
    """List what this request may ask for about an event; nothing without the permission, or on a read-only server."""
    parts = request.app.state.parts
    if parts.read_only or not request.app.state.guard.permits(request, "operate"):
        return []
    return [one for one in possible(ledger) if one.flow is None or parts.prefect_api is not None]


def possible(ledger: Ledger) -> Iterator[Action]:
    """Yield what makes sense for an event, by what is recorded of it."""
    replay, export, verify, restore = ACTIONS
    if ledger.quarantine is not None:
        yield replay
    raw = ledger.purge("raw")
    if ledger.export is not None:
        if raw is None or raw.trashed_at is None:
            yield export
        if not ledger.expired:
            yield verify
        if raw is not None and raw.gone_at is not None:
            yield restore


def _perform(site: Site, request: Request, text: str, token: Token, form: dict[str, str]) -> Response:
    """Check a form, do what it asks for, and record it with its reason."""
    ref = site.catalog.resolve(text, prefix=token.prefix or "")
    ledger = site.catalog.ledger(ref)
    request_info(request.scope).key = ledger.event.key
    reason = " ".join(form.get("reason", "").split())
    if not SHORTEST <= len(reason) <= LONGEST or not reason.isprintable():
        raise Rejected(f"a reason of {SHORTEST} to {LONGEST} characters is needed, for the history of the event")
    action = next((one for one in offered(request, ledger) if one.name == form.get("action")), None)
    if action is None:
        raise Rejected("this action is not possible for the event as it is now: reload its page")
    now = site.catalog.now()
    if action.flow is not None:
        start_run(request.app.state.parts.prefect_api, action, ref)
    elif ledger.quarantine is not None and ledger.quarantine.id is not None:
        site.catalog.replay(ledger.quarantine.id, now=now)
    site.catalog.record_request(ref, action.title.lower(), reason, actor=token.name, at=now)
    log.info("%s: %s requested by %s", ref, action.title.lower(), token.name)
    return Response(None, 303, {"Location": f"/events/{ref}#history", "Cache-Control": "no-store"})


def start_run(api: PrefectApi, action: Action, ref: Ref) -> str:
    """Create a run of a deployment for one event, and return its id.

    Raises:
        Unavailable: Prefect does not answer, or has no such deployment.
    """
    wanted = {"parameters": {**action.parameters, "event_ids": [str(ref)]}, "tags": TAGS}
    wanted["idempotency_key"] = uuid4().hex  # so that a request that is sent again starts no second run
    try:
        with open_client(api, timeout=SECONDS) as client:
            found = _request(client, "GET", f"/deployments/name/{action.flow}/plateway")
            run = _request(client, "POST", f"/deployments/{found['id']}/create_flow_run", json=wanted)
    except httpx.HTTPStatusError as error:
        raise Unavailable(f"Prefect answered {error.response.status_code}: the run was not started") from None
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise Unavailable(f"Prefect does not answer ({type(error).__name__}): the run was not started") from None
    return str(run["id"])


def _request(client: httpx.Client, method: str, path: str, **content: Any) -> Any:
    """Send a request, again after a pause while the server is busy: on SQLite it answers 503 then."""
    for pause in PAUSES:
        if (answer := client.request(method, path, **content)).status_code != 503:
            break
        time.sleep(pause)
    return answer.raise_for_status().json()
