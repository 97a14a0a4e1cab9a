"""Decodes records of W&B's transaction log with W&B's own protobuf messages.

They are imported when the first record is decoded.
"""

from __future__ import annotations

import json
import re
from typing import Any

from runners.track.log_file import SUMMARY, Log

Key = tuple[str, ...]

# A summary record, byte for byte, that sets nothing but numbers of W&B's own, such as _runtime,
# _step and _timestamp: it writes two with every history row. num, summary { update { key or
# nested_key "_...", value_json } ... }, _info; lengths are varints.
_LENGTH = rb"[\x80-\xff]*[\x00-\x7f]"
_UPDATE = (
    rb"\x0a" + _LENGTH + rb"[\x0a\x12]" + _LENGTH + rb"_[a-z]+"
    rb"(?:\x12" + _LENGTH + rb"[a-z]+)?\x82\x01" + _LENGTH + rb"[-+.0-9e]+"
)  # fmt: skip
CLOCK = re.compile(
    rb"\x08" + _LENGTH + rb"\x1a" + _LENGTH + rb"(?:" + _UPDATE + rb")+(?:\xc2\x0c.*)?", re.DOTALL
)


def decoded(data: bytes) -> Any:
    """A decoded `wandb_internal.Record`; raises ValueError."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    try:
        return Record.FromString(data)
    except DecodeError as error:
        raise ValueError(error) from error


def fold(log: Log, kind: int, start: dict[str, Any]) -> dict[str, Any]:
    """The state after all updates of a kind. With removals, whose order matters, messages are
    applied one by one; without them they are joined and decoded at once."""
    name = "summary" if kind == SUMMARY else "config"
    payloads = [data for data in log.of(kind) if not CLOCK.fullmatch(data)]
    if not payloads:
        return start
    joined = getattr(decoded(b"".join(payloads)), name)
    messages = [getattr(decoded(p), name) for p in payloads] if joined.remove else [joined]
    values: dict[Key, str | None] = {}
    for message in messages:
        last_values(message, values)
    return build(values, start)


def last_values(message: Any, values: dict[Key, str | None]) -> dict[Key, str | None]:
    """Adds the message's updates as JSON text, removals as None, the latest at the end."""
    for items, removed in ((message.update, False), (message.remove, True)):
        for item in items:
            key = tuple(item.nested_key) or (item.key,)
            values.pop(key, None)
            values[key] = None if removed else item.value_json
    return values


def build(texts: dict[Key, str | None], start: dict[str, Any]) -> dict[str, Any]:
    """Applies key paths in order; a later value replaces what lies below it. All values are parsed
    as one JSON list, which takes a tenth of parsing them one by one."""
    values = json.loads(f"[{','.join('null' if t is None else t for t in texts.values())}]")
    if len(values) != len(texts):
        raise ValueError("a value is not one JSON value")
    tree = dict(start)
    for (key, text), value in zip(texts.items(), values, strict=True):
        node = tree
        for part in key[:-1]:
            below = node.get(part)
            node[part] = node = dict(below) if isinstance(below, dict) else {}
        if text is None:
            node.pop(key[-1], None)
        else:
            node[key[-1]] = value
    return tree
