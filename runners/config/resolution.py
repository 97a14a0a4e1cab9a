"""Resolves a composed config to plain values, for a run and for every job of a sweep."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf


class Composed(NamedTuple):
    """One composed config, resolved to plain values, with the overrides that made it."""

    config: dict[str, Any]
    overrides: list[str]


def of_one_cell(composed: Composed) -> list[Composed]:
    """The config itself, or two of it for measure.graph=both: without CUDA graphs and with."""
    config, overrides = composed
    measure = config.get("measure")
    if not isinstance(measure, dict) or measure.get("graph") != "both":
        return [composed]
    return [
        Composed({**config, "measure": {**measure, "graph": graph}}, overrides)
        for graph in ("off", "on")
    ]


OF_ENVIRONMENT = ("${oc.env:", "${host_variables:")  # resolvers of nothing but the environment
REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")


def plain(config: DictConfig, cache: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config resolved to plain values, without Hydra's node, which is not even copied.

    Top-level references such as ${model.topk}, and nodes that refer to nothing but the environment
    (kept in `cache` across jobs), are resolved here: OmegaConf would parse each of them again in
    every one of ten thousand jobs, which takes most of the time.

    Raises OmegaConfBaseException for what does not resolve, and for a missing value.
    """
    nodes = {str(k): node for k, node in config.items_ex(resolve=False) if k != "hydra"}
    resolved = {
        key: _resolved(node, {} if cache is None else cache)
        for key, node in nodes.items()
        if OmegaConf.is_config(node)
    }
    for key, node in nodes.items():
        if key not in resolved:
            resolved[key] = _leaf_value(node, resolved, config, key)
    return {key: resolved[key] for key in nodes}


def _resolved(node: Any, cache: dict[str, Any]) -> Any:
    raw = OmegaConf.to_container(node, resolve=False)
    text = repr(raw)
    if "${" not in text and "???" not in text:
        return raw
    if text in cache:
        return cache[text]
    value = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if text.count("${") == sum(map(text.count, OF_ENVIRONMENT)):
        cache[text] = value
    return value


def _leaf_value(raw: Any, resolved: dict[str, Any], config: DictConfig, key: str) -> Any:
    """A leaf's value; only plain references to another node's leaf bypass OmegaConf."""
    reference = REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
    node = resolved.get(reference[1]) if reference else None
    if reference and isinstance(node, dict) and not isinstance(node.get(reference[2]), dict | None):
        return node[reference[2]]
    value = config[key]  # a reference to a whole node gives that node
    is_node = OmegaConf.is_config(value)
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if is_node else value
