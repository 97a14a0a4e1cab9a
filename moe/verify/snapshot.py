"""A proven step's output, gradients and input, and how later steps differ from them.

On a CPU every later step must be equal bit by bit, as it adds in the same order. Where some sums
have no fixed order, the cell's limits apply: on a GPU (sums of biases' gradients, say), and in
another system's layer with several threads (torch's gradient of an indexed tensor adds atomically).
For an exact comparison only a digest of gradients is kept, as they are as large as the weights.

Shape letters: T tokens of this rank, D in, O out.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe.spec import PEER
from moe.step import Step
from moe.verify.errors import rms_error
from moe.verify.limits import Limits


@dataclass(frozen=True)
class Difference:
    """What has changed, and by how much relative to the proven value (root mean square; the norm's
    change for a gradient kept as a digest)."""

    what: str
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """For a record: infinities become None, as JSON has none."""
        size = self.relative if math.isfinite(self.relative) else None
        return {"what": self.what, "relative": size}

    def __str__(self) -> str:
        size = f"{self.relative:.2g}" if math.isfinite(self.relative) else "no number"
        return f"{self.what} (relative change {size})"


class Snapshot:
    """What `step` left right after it was proven."""

    def __init__(self, step: Step, limit: Limits) -> None:
        self.limit = limit
        assert step.output is not None
        cell = step.layer.cell
        train = cell.workload.mode == "train"
        unordered = train and cell.strategy.name.startswith(PEER) and cell.placement.threads > 1
        self.exact = step.output.device.type == "cpu" and not unordered
        self.y_TO = step.output.clone()
        self.x_TD = step.x_TD.detach().clone()
        self.gradients = {name: self._kept(grad) for name, grad in local_gradients(step).items()}

    def _kept(self, grad: Tensor) -> Any:
        return (digest(grad), float(grad.norm())) if self.exact else grad.clone()

    def difference(self, step: Step) -> Difference | None:
        """The first difference from the proven step; None if there is none."""
        output = step.output
        if output is None or output.shape != self.y_TO.shape:
            return Difference("the output's shape", math.inf)
        if not self._same(output, self.y_TO, self.limit.row):
            return Difference("the output", rms_error(output, self.y_TO.double()))
        if not torch.equal(step.x_TD, self.x_TD):
            return Difference("the input", rms_error(step.x_TD.detach(), self.x_TD.double()))
        gradients = local_gradients(step)
        if gradients.keys() != self.gradients.keys():
            return Difference("which weights have gradients", math.inf)
        for name, grad in gradients.items():
            if change := self._gradient_change(grad, self.gradients[name]):
                return Difference(f"the gradient of {name}", change)
        return None

    def _same(self, now: Tensor, want: Tensor, limit: float) -> bool:
        if self.exact:
            return torch.equal(now, want)
        return rms_error(now, want.double()) <= limit

    def _gradient_change(self, grad: Tensor, kept: Any) -> float:
        """Relative change of a gradient; 0 if unchanged."""
        if not self.exact:
            change = rms_error(grad, kept.double())
            return change if change > self.limit.gradient else 0.0
        mark, norm = kept
        if digest(grad) == mark:
            return 0.0
        change = abs(float(grad.norm()) - norm) / norm if norm else math.inf
        return max(change, 1e-12)  # a changed gradient of the same norm must not count as 0


def digest(tensor: Tensor) -> bytes:
    """SHA-256 of the tensor's bytes, in element order."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()


def local_gradients(step: Step) -> dict[str, Tensor]:
    """{name: gradient} of the input and this rank's parameters after the last step."""
    tensors = {"x": step.x_TD, **dict(step.layer.named_parameters())}
    return {name: t.grad for name, t in tensors.items() if t.grad is not None}
