"""The strategies: ways to spread the layer over ranks. Torch-free.

Each is a package of two files: `__init__.py` defines RULES, `layer.py` LAYER. This registry finds
the packages in this folder; no other file has to name them.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from moe.parallel.rules import Degrees, StrategyRules
from moe.spec import Cell

BUILT_IN = ("serial", "simple", "dp", "tp", "ep", "ep_tp", "dp_ep", "fsdp")  # as errors list them


def _registered() -> dict[str, StrategyRules]:
    present = sorted(module.name for module in iter_modules(__path__) if module.ispkg)
    further = (name for name in present if name not in BUILT_IN)
    return {name: import_module(f"{__name__}.{name}").RULES for name in (*BUILT_IN, *further)}


_RULES = _registered()
_ELSEWHERE = StrategyRules()


def names() -> tuple[str, ...]:
    """All strategies: the built-in ones, then further ones in alphabetical order."""
    return tuple(_RULES)


def rules_of(name: str) -> StrategyRules:
    """The rules of strategy `name`; the defaults for peers."""
    return _RULES.get(name, _ELSEWHERE)


def degrees(cell: Cell) -> Degrees:
    """Resolved degrees: ranks that split the experts, split an expert, and hold replicas."""
    return rules_of(cell.strategy.name).degrees(cell)


def usual_dispatcher(strategy: str, tokens: str, overlap: int) -> str:
    """Resolves `strategy.dispatcher=auto`."""
    return rules_of(strategy).usual_dispatcher(tokens, overlap)
