#!/usr/bin/env python3
"""Reduces the Matrix specification's OpenAPI files to a table of facts.

    tests/conformance/extract.py PATH_TO_SPEC > tests/conformance/endpoints.json

PATH_TO_SPEC is a folder with `endpoints.tsv`, `data/api/` and `content/changelog/` of the matrix-spec repository.
The table holds methods, paths, names, types, limits and status codes, and no prose. It is committed; this script is
run again only when the specification changes. Needs PyYAML.
"""

import csv
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import yaml

# What neither the OpenAPI files nor the "New Endpoints" lists of the changelogs say.
ADDED = {
    # MSC2675, released with v1.3.
    ("client-server", "getRelatingEvents"): "1.3",
    ("client-server", "getRelatingEventsWithRelType"): "1.3",
    ("client-server", "getRelatingEventsWithRelTypeAndEventType"): "1.3",
}
# The OpenAPI file names the federation's signature; the text of the endpoint speaks of clients.
AUTH = {("client-server", "getRoomSummary"): "accessTokenBearer (optional)"}

LIMITS = [
    "enum", "const", "format", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
]
DEPTH_MAX = 12

files = {}


def load(path):
    path = path.resolve()
    if path not in files:
        files[path] = yaml.safe_load(path.read_text())
    return files[path]


def follow(node, path):
    """Replaces a `$ref` by what it refers to, with the file that holds it."""
    for _ in range(20):
        if not isinstance(node, dict) or "$ref" not in node:
            return node, path
        rest = {k: v for k, v in node.items() if k != "$ref"}
        name, _, pointer = node["$ref"].partition("#")
        if name:
            path = (path.parent / unquote(name)).resolve()
        target = load(path)
        for step in filter(None, pointer.split("/")):
            target = target[unquote(step).replace("~1", "/").replace("~0", "~")]
        # Of what stands beside a reference only `required` says something about the shape.
        if rest.get("required"):
            target = {**target, "required": sorted(set(target.get("required") or []) | set(rest["required"]))}
        node = target
    raise SystemExit(f"references without end in {path}")


def merge(into, other):
    """Lays one reduced schema over another, as `allOf` does."""
    for key, value in other.items():
        if key == "properties":
            properties = into.setdefault(key, {})
            for name, schema in value.items():
                properties[name] = merge(dict(properties[name]), schema) if name in properties else schema
        elif key == "required":
            into[key] = sorted(set(into.get(key, [])) | set(value))
        else:
            into[key] = value
    return into


def reduce(node, path, depth=0):
    """A schema without its prose: types, requiredness and limits."""
    node, path = follow(node, path)
    if not isinstance(node, dict) or depth > DEPTH_MAX:
        return {}
    out = {}
    for part in node.get("allOf") or []:
        merge(out, reduce(part, path, depth + 1))
    own = {}
    if "type" in node:
        own["type"] = node["type"]
    for key in LIMITS:
        if key in node:
            own[key] = node[key]
    properties = {
        name: reduce(schema, path, depth + 1)
        for name, schema in sorted((node.get("properties") or {}).items())
    }
    if properties:
        own["properties"] = properties
        own.setdefault("type", "object")
    if node.get("required"):
        own["required"] = sorted(node["required"])
    if isinstance(node.get("additionalProperties"), dict) and node["additionalProperties"]:
        own["values"] = reduce(node["additionalProperties"], path, depth + 1)
    if node.get("patternProperties"):
        schemas = [reduce(schema, path, depth + 1) for _, schema in sorted(node["patternProperties"].items())]
        own["values"] = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
        formats = [schema.get("x-pattern-format") for schema in node["patternProperties"].values()]
        if len(formats) == 1 and formats[0]:
            own["names"] = {"format": formats[0]}
    if "items" in node:
        items = node["items"]
        if isinstance(items, list):
            items = items[0] if len(items) == 1 else {"oneOf": items}
        own["items"] = reduce(items, path, depth + 1)
    for key in ("oneOf", "anyOf"):
        if node.get(key):
            own["oneOf"] = [reduce(part, path, depth + 1) for part in node[key]]
    return merge(out, own)


def parameter(node, path):
    node, path = follow(node, path)
    # Path parameters are always required; the flag says something only elsewhere.
    return node["in"], {
        "name": node["name"],
        "required": bool(node.get("required", False)),
        "schema": reduce(node.get("schema", {}), path),
    }


def body(node, path):
    node, path = follow(node, path)
    content = node.get("content") or {}
    kinds = sorted(content)
    if not kinds:
        return None
    kind = "application/json" if "application/json" in kinds else kinds[0]
    out = {"content_type": kind, "required": bool(node.get("required", False))}
    if kind == "application/json":
        out["schema"] = reduce(content[kind].get("schema", {}), path)
    return out


def changelogs(spec):
    """From the "New Endpoints" lists: (method, path) to the release."""
    found = {}
    for page in sorted((spec / "content/changelog").glob("v1.*.md")):
        text = page.read_text()
        for block in re.findall(r"New Endpoints.*?\n(.*?)(?=\n(?:\*\*|<strong>|#)|\Z)", text, re.S):
            for method, path in re.findall(r"`(GET|PUT|POST|DELETE) (/[^`]*)`", block):
                found[method, path] = page.stem.removeprefix("v")
    return found


def write(operation):
    """One fact a line: small enough a file, and a difference shows what changed."""
    lines = []
    for key, value in operation.items():
        if key == "responses":
            statuses = ",\n".join(f"  {json.dumps(status)}: {json.dumps(shape)}" for status, shape in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{statuses}}}")
        elif key.endswith("_parameters"):
            each = ",\n".join("  " + json.dumps(one) for one in value)
            lines.append(f" {json.dumps(key)}: [\n{each}]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "}"


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    spec = Path(sys.argv[1])
    listed = changelogs(spec)
    with open(spec / "endpoints.tsv", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    operations = []
    for row in rows:
        api, name = row["api"], row["operationId"]
        path = spec / "data/api" / api / row["file"]
        found = None
        for url, methods in load(path)["paths"].items():
            node = methods.get(row["method"].lower())
            if node and node.get("operationId") == name and row["path"].endswith(url):
                found = (node, methods.get("parameters") or [])
        if found is None:
            raise SystemExit(f"{row['file']} has no {name}")
        node, shared = found
        parameters = {"path": [], "query": [], "header": []}
        for each in shared + (node.get("parameters") or []):
            place, reduced = parameter(each, path)
            parameters[place].append(reduced)
        responses = {}
        for status, answer in sorted((node.get("responses") or {}).items(), key=lambda pair: str(pair[0])):
            answer, answer_path = follow(answer, path)
            shape = body(answer, answer_path) if str(status).startswith("2") else None
            if shape:
                shape.pop("required")
            responses[str(status)] = shape
        operation = {
            "api": api,
            "operation": name,
            "method": row["method"],
            # Two operations at one path are told apart by a space at the end of one.
            "path": row["path"].strip(),
            "auth": AUTH.get((api, name), row["auth"]),
            # Null: older than v1.1, the first release that is numbered for all APIs together.
            "added": row["added_in"] or listed.get((row["method"], row["path"].strip())) or ADDED.get((api, name)),
            "deprecated": bool(row["deprecated"]),
            "rate_limited": bool(row["rate_limited"]),
        }
        for place in ("path", "query", "header"):
            if parameters[place]:
                operation[f"{place}_parameters"] = parameters[place]
        if "requestBody" in node:
            operation["body"] = body(node["requestBody"], path)
        operation["responses"] = responses
        operations.append(operation)
    operations.sort(key=lambda each: (each["api"], each["path"], each["method"]))
    releases = sorted(
        (page.stem.removeprefix("v") for page in (spec / "content/changelog").glob("v1.*.md")),
        key=lambda release: [int(part) for part in release.split(".")],
    )
    print('{"releases":', json.dumps(releases) + ",")
    print('"operations": [')
    print(",\n".join(write(operation) for operation in operations))
    print("]}")


main()
