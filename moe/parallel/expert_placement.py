"""Which place computes a slot, where the places of `expert_order` hold the experts.

Shape letters: T tokens, K slots of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """`experts[p]` is the expert in place p. `table_EC` holds the places of each expert's copies,
    padded with the first. `plain`: place e holds expert e."""

    experts: tuple[int, ...]
    table_EC: Tensor
    copies_E: Tensor
    plain: bool

    def locate(self, indices_TK: Tensor, first_token: int) -> Tensor:
        """[T, K] places; tokens alternate between an expert's copies by global id.

        So which copy computes a slot depends on neither strategy nor rank, and needs no exchange.
        """
        if self.plain:
            return indices_TK
        if self.table_EC.shape[1] == 1:
            return self.table_EC[:, 0][indices_TK]
        last = first_token + indices_TK.shape[0]
        token_T1 = torch.arange(first_token, last, device=indices_TK.device).unsqueeze(1)
        return self.table_EC[indices_TK, token_T1 % self.copies_E[indices_TK]]

    @cached_property
    def copied(self) -> list[int]:
        """Experts that have several copies."""
        return (self.copies_E > 1).nonzero().flatten().tolist()


def places_of(order: Sequence[int], experts: int, device: torch.device) -> Places:
    where: list[list[int]] = [[] for _ in range(experts)]
    for place, expert in enumerate(order):
        where[expert].append(place)
    most = max(map(len, where))
    table = [places + places[:1] * (most - len(places)) for places in where]
    copies = torch.tensor([len(places) for places in where], device=device)
    plain = list(order) == list(range(experts))
    return Places(tuple(order), torch.tensor(table, device=device), copies, plain)
