"""A composed config as plain values: the one way, for a run and for every job of a sweep."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf


class Composed(NamedTuple):
    """One composed config, resolved to plain values, with the overrides that made it."""

    config: dict[str, Any]
    overrides: list[str]


REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")


def plain(config: DictConfig, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Resolved, without Hydra's node (a copy without it would copy it first).

    Top-level references such as ${model.topk}, and nodes that ask nothing but the environment
    (`known` keeps these from job to job), are seen to here: OmegaConf parses each of them anew in
    every one of ten thousand jobs, which takes most of the time.

    Raises OmegaConfBaseException for what does not resolve, and for a value that is missing.
    """
    nodes = {str(k): node for k, node in config.items_ex(resolve=False) if k != "hydra"}
    found = {
        key: _resolved(node, {} if known is None else known)
        for key, node in nodes.items()
        if OmegaConf.is_config(node)
    }
    for key, node in nodes.items():
        if key not in found:
            found[key] = _looked_up(node, found, config, key)
    return {key: found[key] for key in nodes}


def _resolved(node: Any, known: dict[str, Any]) -> Any:
    raw = OmegaConf.to_container(node, resolve=False)
    text = repr(raw)
    if "${" not in text and "???" not in text:
        return raw
    if text in known:
        return known[text]
    found = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if text.count("${") == text.count("${oc.env:"):
        known[text] = found
    return found


def _looked_up(raw: Any, found: dict[str, Any], config: DictConfig, key: str) -> Any:
    """A leaf's value; what is no plain reference to another node's leaf, OmegaConf resolves."""
    reference = REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
    node = found.get(reference[1]) if reference else None
    if reference and isinstance(node, dict) and not isinstance(node.get(reference[2]), dict | None):
        return node[reference[2]]
    value = config[key]  # of a reference to a whole node: that node
    whole = OmegaConf.is_config(value)
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if whole else value
