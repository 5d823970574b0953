"""The page of the API: every request, from the OpenAPI document, without scripts.

FastAPI's own pages load scripts from other hosts, which are often not reachable from a laboratory.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from plateway.gateway import auth
from plateway.gateway.headers import POLICY

PATH = "/docs"
LIMITS = {
    "minimum": "from {}",
    "maximum": "to {}",
    "minLength": "of {} and more",
    "maxLength": "of up to {} characters",
}

_templates = Environment(
    loader=PackageLoader("plateway.gateway", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def install(app: FastAPI) -> None:
    """Add this page to an application; it lists the routes that exist when it is requested."""
    told: dict[str, Any] = {"dependencies": [auth.OPEN], "include_in_schema": False, "response_class": Response}
    app.add_api_route(PATH, show, methods=["GET"], **told)


def show(request: Request) -> Response:
    """Render the page."""
    app: FastAPI = request.app
    style = _templates.get_template("reference.css").render()
    document = app.openapi()
    page = _templates.get_template("reference.html").render(
        style=style,
        version=document["info"]["version"],
        groups=groups(document, scopes(app)),
        shapes=dict(shapes(document)),
        shown=app.state.guard.opens(request),
    )
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; frame-ancestors 'none'; sandbox"
    return Response(page, media_type="text/html", headers={POLICY: policy})


def groups(document: Mapping[str, Any], asked: Mapping[tuple[str, str], str]) -> dict[str, list[dict[str, Any]]]:
    """Group the requests of a document by tag, with the description of each."""
    found = defaultdict(list)
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            name = f"{method.upper()} {path}"
            about = {
                "name": name,
                "anchor": re.sub(r"\W+", "-", name.lower()).strip("-"),
                "told": " ".join(told.get("description", told.get("summary", "")).split()),
                "asks": asked.get((method.upper(), path), ""),
                "takes": [*_parameters(told), *_body(told)],
                "gives": [_answer(status, answer) for status, answer in told["responses"].items()],
            }
            found[next(iter(told.get("tags", ["others"])))].append(about)
    return dict(found)


def scopes(app: FastAPI) -> dict[tuple[str, str], str]:
    """Return what each request requires, by method and path."""
    return {
        (method, re.sub(r":\w+}", "}", path)): "nothing" if asked is None else f"a token that may {' and '.join(asked)}"
        for method, path, asked in auth.declared(app)
    }


def shapes(document: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """List the fields of bodies, by name of the schema."""
    for name, shape in document.get("components", {}).get("schemas", {}).items():
        fields = shape.get("properties", {"": shape})
        yield (
            name,
            [{"name": field, "kind": kind(one), "told": one.get("description", "")} for field, one in fields.items()],
        )


def kind(schema: Mapping[str, Any]) -> str:
    """Describe the type of a value."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if several := schema.get("anyOf", schema.get("oneOf", schema.get("allOf"))):
        return " or ".join(dict.fromkeys(map(kind, several)))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    limits = [words.format(schema[limit]) for limit, words in LIMITS.items() if limit in schema]
    return " ".join([schema.get("format", schema.get("type", "anything")), *limits])


def _parameters(told: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for one in told.get("parameters", ()):
        schema = one.get("schema", {})
        default = schema.get("default")
        said = one.get("description", schema.get("description", ""))
        yield {
            "name": one["name"],
            "where": one["in"],
            "kind": kind(schema).removesuffix(" or null"),  # what need not be given
            "told": "; ".join(filter(None, [said, "" if default is None else f"default {default}"])),
        }


def _body(told: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for media, one in told.get("requestBody", {}).get("content", {}).items():
        yield {"name": media, "where": "body", "kind": kind(one.get("schema", {})), "told": ""}


def _answer(status: str, answer: Mapping[str, Any]) -> dict[str, str]:
    kinds = [f"{media} {kind(one.get('schema', {}))}" for media, one in answer.get("content", {}).items()]
    return {"status": status, "told": answer.get("description", ""), "kind": " or ".join(kinds)}
