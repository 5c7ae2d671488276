"""The description of the API, for programs and for people; both are made from the classes that check requests."""

import html
import json
from collections.abc import Iterator
from typing import Any

import gpt
from gpt.demo.bodies import ClassifyBody, CompletionBody

_ERRORS = {
    "400": "A field is missing, unknown or without meaning; the message names it.",
    "401": "The bearer token is missing or wrong.",
    "404": "There is no such model, or it has no classifier.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "Too many requests a minute, or too many texts that wait; `retry-after` says when to try again.",
    "503": "The server is shutting down.",
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths = {
        "/v1/completions": {
            "post": _operation("Continue texts", "An object as OpenAI's, or with `stream` its events.", CompletionBody)
        },
        "/v1/classify": {
            "post": _operation("Classify texts with a fine-tuned run", "`data`, one entry an input.", ClassifyBody)
        },
        "/v1/models": {"get": _operation("The model that is served", "`data`, with its name and context length.")},
        "/healthz": {"get": _operation("Whether the server can answer", "It can.", errors=("503",))},
        "/metrics": {"get": _operation("Counts in Prometheus' text format", "The counts.", errors=("401",))},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "GPT-1", "version": gpt.__version__, "description": "In the style of OpenAI's API."},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }


def _operation(
    summary: str, answer: str, body: type[CompletionBody] | type[ClassifyBody] | None = None, errors: Any = None
) -> dict[str, Any]:
    codes = errors or (_ERRORS if body else ("401", "429"))
    responses = {"200": {"description": answer}} | {code: {"description": _ERRORS[code]} for code in codes}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        # A schema of its own root, so that its references stay inside of it.
        schema = {"$id": f"/schemas/{body.__name__}", **body.model_json_schema()}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API</title>
<link rel="icon" href="/page/icon.svg">
<link rel="stylesheet" href="/page/page.css">
</head>
<body class="api">
<main>
<h1>API</h1>
<p>For programs: <a href="/openapi.json">openapi.json</a>. For people: <a href="/">the writing page</a>.</p>
"""


def page() -> str:
    """The document as a page of its own that loads nothing but our style sheet."""
    return f"{_HEAD}{''.join(_sections())}</main>\n</body>\n</html>\n"


def _sections() -> Iterator[str]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {path}</code></h2>\n<p>{html.escape(operation['summary'])}.</p>\n"
            if "requestBody" in operation:
                yield _table(
                    ("field", "type", "default", "meaning"),
                    _fields(operation["requestBody"]["content"]["application/json"]["schema"]),
                )
            answers = ((code, answer["description"]) for code, answer in operation["responses"].items())
            yield _table(("status", "meaning"), answers)


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema["properties"].items():
        default = json.dumps(field["default"]) if "default" in field else "required"
        yield name, _type(field), default, field.get("description", "")


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(_type, field["anyOf"])))
    if "const" in field:
        return json.dumps(field["const"])
    if field.get("type") == "array":
        return f"list of ({_type(field['items'])})" if "anyOf" in field["items"] else f"list of {_type(field['items'])}"
    return str(field.get("type", "object"))


def _table(names: tuple[str, ...], rows: Any) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _inline(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
