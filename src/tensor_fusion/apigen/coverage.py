"""Which names are remote, local, custom, alias, refused or unsupported, as JSON for the command line."""

from __future__ import annotations

import json

from .model import NOT_SERVED, Model

KIND = {"call": "remote", "post": "remote", "pure": "remote", "per_thread": "alias", "older": "alias"}


def coverage(model: Model) -> str:
    """coverage.json: for each API and name its kind, the reason when it is not served, and a detail."""
    out: dict[str, dict[str, dict[str, dict[str, str | bool | None]]]] = {}
    for api in model.apis:
        functions: dict[str, dict[str, str | bool | None]] = {}
        for name in sorted(api.exports):
            line = api.lines[name]
            target = api.resolve(line)
            kind = target.kind if target.kind in NOT_SERVED else KIND.get(line.kind, line.kind)
            functions[name] = {
                "kind": kind,
                "reason": target.reason or None,
                "advertised": target.advertised,
                "detail": line.target or target.code or (line.kind if kind == "remote" else None),
            }
        out[api.name] = {"functions": functions}
    return json.dumps(out, indent=1) + "\n"
