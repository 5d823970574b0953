"""``plateway simulate``: run simulated instruments."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from plateway import settings, simulator
from plateway.cli.console import err, out, print_json
from plateway.cli.options import Home, Json
from plateway.errors import Misconfigured


def simulate(
    *,
    home: Home = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Name of an instrument; may be repeated. Default: prince and aretha.")
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="Stop after this many events; default: never.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Events per second, of all instruments together.")] = 0.5,
    images: Annotated[int, typer.Option(min=1, help="Images per event.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Width and height of an image in pixels.")] = 512,
    fault: Annotated[
        list[str] | None,
        typer.Option(help=f"Fault of the next event; may be repeated: {', '.join(sorted(simulator.FAULTS))}."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Acquire what is posted to /timestep over HTTP, until Ctrl-C.")
    ] = False,
    redis: Annotated[
        bool,
        typer.Option("--redis", help="Announce in DLM v2's Redis stream (PLATEWAY_REDIS_URL), not by event files."),
    ] = False,
    host: Annotated[str, typer.Option(help="With --serve: address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --serve: port to listen on; 0 is any free port.")
    ] = 8001,
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="With --serve: also acquire an event after every so many seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run simulated instruments.

    They write images and event files on the bench. Every second instrument writes the current event format, the others
    the legacy one.
    """
    config = settings.load(home=home)
    bench = config.root
    # Only a bench inside the home is private; instruments and others may use another one.
    private = bench.is_relative_to(config.home.absolute())
    mode = settings.private_files() if private else nullcontext()
    if serve:
        from plateway.simulator import http  # noqa: PLC0415  FastAPI, which only --serve needs

        with mode:
            every = timedelta(seconds=interval) if interval else None
            application = http.create_app(bench, size=size, interval=every)
            return http.serve(application, host=host, port=port, ready=lambda url: out.print(f"POST {url}"))
    publish = None
    if redis:
        if fault or serve:
            raise typer.BadParameter("neither --fault nor --serve goes with it", param_hint="--redis")
        if not config.redis_url:
            raise Misconfigured("PLATEWAY_REDIS_URL is not set: redis://:password@host:6379/0")
        from plateway.simulator.redis import publisher  # noqa: PLC0415  redis-py is optional

        publish = publisher(config.redis_url.get_secret_value())
    if unknown := sorted(set(fault or ()) - set(simulator.FAULTS)):
        raise typer.BadParameter(f"no such fault: {', '.join(unknown)}", param_hint="--fault")
    instruments = [
        simulator.Simulated(
            system=name,
            dialect="imaging event" if number % 2 or redis else "timestep",
            root=bench / name,
            images=images,
            size=size,
            seed=int(datetime.now(UTC).timestamp()),
            publish=publish,
        )
        for number, name in enumerate(system or ["prince", "aretha"])
    ]
    announced = []
    with mode:
        for one in simulator.run(instruments, rate=rate, count=events, faults=fault or ()):
            announced.append({"id": str(one.id), "system": one.system, "file": None if redis else one.path.name})
            err.print(f"{one.system} announced {one.id}")
    if as_json:
        print_json({"events": announced})
    return None
