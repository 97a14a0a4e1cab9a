"""The faults a check can report, and how ranks agree on one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from moe.parallel.comm import Comm
from moe.verify.limits import Limits

FAULTS = (
    "agrees with the float64 oracle",
    "shared definitions of weights, tokens or workloads are not what they were",
    "the input is not this rank's tokens",
    "tokens of the batch are the same, or not spread as they should be",
    "two experts have the same weights",
    "the prescribed choice is not what the workload says",
    "the selection bias does not even out the load",
    "no rank has routed a token of the batch",
    "ranks routed the same token differently",
    "an output, logit or gradient is not a finite number",
    "router logits differ from the oracle's",
    "scores that experts are ranked by differ from the oracle's",
    "chosen experts are not the best, lowest id first",
    "gates differ from the oracle's",
    "slots were dropped that the rule keeps, or kept that it drops",
    "a router that sees only ties does not choose the lowest ids",
    "outputs have the wrong shape",
    "outputs differ from the oracle",
    "outputs are a little off everywhere: their root mean square error is above the limit",
    "gradients differ from the oracle's",
    "the step has changed its input",
    "a copy of the layer computes something else",
    "copies of the layer share memory",
    "weights, input or output are not of the layer's dtype",
    "gradients that are told are not those that the step has left",
    "a step does less work, or sends less, than its tokens need",
    "a later step on the same tokens gives something else",
)
(AGREES, DEFINITIONS, INPUT, TOKENS, EXPERTS, PRESCRIBED, BIAS, UNROUTED, RANKS, FINITE, LOGITS,
 SCORES, CHOICE, GATES, KEPT, TIES, SHAPE, OUTPUTS, RMS, GRADIENTS, CHANGED, COPY, SHARED, DTYPE,
 TOLD, WORK, LATER) = tuple(range(len(FAULTS)))  # fmt: skip


@dataclass
class CheckResult:
    """Result of a check, the same on every rank. Errors are relative.

    `error` is the largest over tokens and ranks; `rms` that of all outputs of a rank, the largest
    over ranks. `tokens_checked` were compared with float64, `rows_compared` with the plain
    computation. `near_ties` tokens chose other experts than float64 does, within rounding. `seed`
    drew the checked tokens.
    """

    ok: bool
    detail: str
    error: float
    tolerance: float
    rms: float
    rms_limit: float
    tokens_checked: int
    rows_compared: int
    near_ties: int
    seed: int
    gradient_error: float | None = None  # mode=train
    gradient_limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a record: infinities become None, as JSON has none."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass
class FaultCollector:
    """Keeps the first fault on this rank and the largest errors."""

    fault: int = AGREES
    errors: dict[str, float] = field(
        default_factory=lambda: {"error": 0.0, "rms": 0.0, "gradient": 0.0, "near_ties": 0.0}
    )

    def require(self, fine: bool, fault: int) -> bool:
        """Records `fault` unless `fine`, if it is the first; returns `fine`."""
        if not fine and not self.fault:
            self.fault = fault
        return fine

    def largest(self, name: str, value: float) -> None:
        """Keeps the larger error; NaN counts as infinite."""
        value = value if value == value else math.inf
        self.errors[name] = max(self.errors[name], value)

    def settle(
        self, comm: Comm, limit: Limits, train: bool, checked: int, rows: int, seed: int
    ) -> CheckResult:
        """The result on all ranks: the fault earliest in FAULTS, and the largest errors.
        Collective."""
        first = -float(self.fault) if self.fault else -math.inf
        local = torch.tensor([first, *self.errors.values()], dtype=torch.float64)
        first, *errors = comm.world.combine_(local.to(comm.device), "max").tolist()
        fault = 0 if first == -math.inf else round(-first)
        error, rms, gradient, near_ties = errors
        if not fault:
            over = [(error > limit.row, OUTPUTS), (rms > limit.rms, RMS),
                    (gradient > limit.gradient, GRADIENTS)]  # fmt: skip
            fault = next((number for beyond, number in over if beyond), AGREES)
        return CheckResult(
            ok=not fault, detail=FAULTS[fault], error=error, tolerance=limit.row, rms=rms,
            rms_limit=limit.rms, tokens_checked=checked, rows_compared=rows,
            near_ties=int(near_ties), seed=seed, gradient_error=gradient if train else None,
            gradient_limit=limit.gradient if train else None,
        )  # fmt: skip
