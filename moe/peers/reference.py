"""peer_reference: the layer in the style of a first version: numpy, loops over tokens, row by row.

simple  every rank loops over all (slot, token) pairs of its tokens
tp      every linear layer's outputs are sharded and gathered after each layer of each expert
ep      one expert per rank: rows travel by two all-to-alls, the expert takes them one at a time

It computes the same function with the same messages; only the style differs. Forward only, as numpy
has no backward.

Shape letters: T tokens on this rank, D in, H hidden, O out, E experts, K top-k, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moe import weights
from moe.peers.base import PeerLayer
from moe.phases import phase
from moe.spec import shard_bounds

Array = Any  # numpy.ndarray, which is imported where it is used


class Matrices(nn.Module):
    """The weights as parameters, so that they count as this rank's; `forward` returns arrays."""

    def __init__(self, matrices: dict[str, Tensor]) -> None:
        super().__init__()
        self.matrices = nn.ParameterDict({n: nn.Parameter(w, False) for n, w in matrices.items()})

    def forward(self) -> dict[str, Array]:
        return {name: parameter.detach().numpy() for name, parameter in self.matrices.items()}


class Peer(PeerLayer):
    def routed_rows(self) -> tuple[int, int]:
        whole = self.variant in ("simple", "tp") and not self.sharded
        return (0, self.total) if whole else super().routed_rows()

    def make_system(self) -> nn.Module:
        rank, size = self.comm.rank, self.comm.world_size
        ids = [rank] if self.variant == "ep" else None
        matrices = {name: self.weights_of(name, ids) for name in weights.names(self.layer)}
        if self.variant == "tp":  # a slice of every linear layer's outputs
            for name, whole in matrices.items():
                start, end = shard_bounds(whole.shape[1], size, rank)
                matrices[name] = whole[:, start:end].clone()
        return Matrices(matrices)

    def forward(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_slice(x_TD)
        routing = self.route(own_TD)
        chosen, gates = routing.indices_TK.numpy(), routing.gates_TK.numpy()
        matrices = self.system()
        ways = {"simple": self._simple, "tp": self._tp, "ep": self._ep}
        y_TO = torch.from_numpy(ways[self.variant](matrices, own_TD.numpy(), chosen, gates))
        whole = y_TO.shape[0] == self.total or self.sharded
        return y_TO if whole else self.gather_batch(y_TO)

    def _linear(self, matrices: dict[str, Array], layer: str, e: int, x: Array) -> Array:
        y = x @ matrices[f"w{layer}"][e].T
        return y + matrices[f"b{layer}"][e] if f"b{layer}" in matrices else y

    def _activated(self, h: Array) -> Array:
        import numpy as np

        return np.maximum(h, 0) if self.layer.activation == "relu" else h

    def _expert(self, matrices: dict[str, Array], e: int, x: Array) -> Array:
        return self._linear(matrices, "2", e, self._activated(self._linear(matrices, "1", e, x)))

    def _zeros(self, tokens: int) -> Array:
        import numpy as np

        return np.zeros((tokens, self.layer.dim_out), np.float32)

    def _simple(self, matrices: dict[str, Array], x: Array, chosen: Array, gates: Array) -> Array:
        out = self._zeros(len(x))
        self.count(chosen.size)
        with phase("experts"):
            for k in range(self.layer.topk):
                for token in range(len(x)):
                    row = x[token : token + 1]
                    y = self._expert(matrices, chosen[token, k], row)[0]
                    out[token] += gates[token, k] * y
        return out

    def _gathered(self, part: Array, width: int) -> Array:
        """Gathers every rank's columns, side by side."""
        size = self.comm.world_size
        bounds = [shard_bounds(width, size, rank) for rank in range(size)]
        columns = torch.from_numpy(part.T.copy())
        with phase("combine"):
            whole = self.comm.world.all_gather(columns, [end - start for start, end in bounds])
        return whole.numpy().T

    def _tp(self, matrices: dict[str, Array], x: Array, chosen: Array, gates: Array) -> Array:
        import numpy as np

        out = self._zeros(len(x))
        self.count(chosen.size)
        for e in range(self.layer.num_experts):
            tokens, ks = np.nonzero(chosen == e)
            with phase("experts"):
                part = self._linear(matrices, "1", e, x[tokens])
            hidden = self._activated(self._gathered(part, self.layer.hidden))
            with phase("experts"):
                part = self._linear(matrices, "2", e, hidden)
            rows = self._gathered(part, self.layer.dim_out)
            for token, k, row in zip(tokens, ks, rows, strict=True):
                out[token] += gates[token, k] * row
        return out

    def _ep(self, matrices: dict[str, Array], x: Array, chosen: Array, gates: Array) -> Array:
        import numpy as np

        out = self._zeros(len(x))
        slots = [(t, k) for e in range(self.layer.num_experts) for t, k in np.argwhere(chosen == e)]
        sent = np.bincount(chosen.reshape(-1), minlength=self.layer.num_experts).tolist()
        rows = [x[t] for t, _ in slots]
        received, counts = self._travel(rows, sent, self.layer.dim)
        self.count(len(received))
        with phase("experts"):
            done = [self._expert(matrices, 0, row) for row in received]
        back, _ = self._travel(done, counts, self.layer.dim_out, sent)
        for (token, k), row in zip(slots, back, strict=True):
            out[token] += gates[token, k] * row
        return out

    def _travel(
        self, rows: list[Array], sent: list[int], width: int, received: list[int] | None = None
    ) -> tuple[Array, list[int]]:
        """Sends rows to their ranks; first exchanges how many, unless `received` is given."""
        import numpy as np

        world, size = self.comm.world, self.comm.world_size
        flat = np.stack(rows) if rows else np.zeros((0, width), np.float32)
        with phase("dispatch"):
            if received is None:
                one_each = [1] * size
                counts = world.all_to_all(torch.tensor(sent), one_each, one_each)[0]
                received = counts.tolist()
            arrived = world.all_to_all(torch.from_numpy(flat), received, sent)[0]
        return arrived.numpy(), received
