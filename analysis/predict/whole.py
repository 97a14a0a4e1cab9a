"""Whole models: the sizes around the layer of conf/model/NAME.yaml, from whole_models/NAME.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from analysis.errors import InputError
from moe.cost.whole_model import WholeModel

FOLDER = Path(__file__).with_name("whole_models")


def names() -> list[str]:
    """Models whose sizes are known, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> WholeModel:
    """Raises InputError for a model of which only the layer is known."""
    if name not in names():
        raise InputError(
            f"--model {name}: only its layer is known; whole models are {', '.join(names())}; add "
            "--one-layer for the layer alone"
        )
    return WholeModel(
        **{key: value for key, value in _written(name).items() if key != "parameters"}
    )


def published_parameters(name: str) -> float:
    """As the model's publisher, or who loaded it, counts them."""
    return float(_written(name)["parameters"])


def _written(name: str) -> dict[str, Any]:
    written: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return written
