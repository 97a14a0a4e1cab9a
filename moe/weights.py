"""The one weight set of a layer, defined by (seed, expert, matrix): every strategy slices this.

Matrices are uniform with the variance that keeps activations near one; they are generated on the
CPU and rounded to the layer's dtype.
Shape letters: D in, H hidden, O out, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe.spec import Layer

_STREAMS = ("router", "w1", "w3", "w2", "b1", "b3", "b2", "tokens", "cotangent", "routing")
_CHUNK = 1 << 16  # elements; the temporaries of one chunk stay in the cache
BIAS_STD = 0.5  # of the order of the outputs, so that neither hides the other


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _mix(*parts: int) -> int:
    """64 bits from integers by splitmix64 (Steele, Lea & Flood 2014)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def uniform_(out: Tensor, seed: int, item: int, stream: str, start: int = 0) -> Tensor:
    """Fills a flat float32 tensor with U(-1, 1); element i is of (seed, item, stream, start+i).

    A counter through murmur3's finaliser: several times faster than a sequential generator, and
    any part can be made without what is before it.
    """
    state = _mix(seed, item, _STREAMS.index(stream))
    low, high = _signed(state), _signed(state >> 32)
    counter = torch.arange(min(_CHUNK, out.numel()), dtype=torch.int32)
    other = torch.empty_like(counter)
    for begin in range(0, out.numel(), _CHUNK):
        part = out[begin : begin + _CHUNK]
        shifted = other[: part.numel()]
        bits = counter[: part.numel()] * _signed(0x9E3779B1)
        bits += _signed((start + begin) * 0x9E3779B1 + low)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            bits ^= torch.bitwise_right_shift(bits, shift, out=shifted).bitwise_and_(
                (1 << (32 - shift)) - 1  # torch shifts the sign in
            )
            bits *= _signed(factor)
            bits += high
        bits ^= torch.bitwise_right_shift(bits, 16, out=shifted).bitwise_and_(0xFFFF)
        torch.mul(bits, 2.0**-31, out=part)
    return out


def _uniform(shape: tuple[int, ...], std: float, seed: int, item: int, stream: str) -> Tensor:
    flat = torch.empty(math.prod(shape))
    return uniform_(flat, seed, item, stream).mul_(std * math.sqrt(3)).view(shape)


def router(layer: Layer) -> Tensor:
    """[E, D] in float32, with values the layer's dtype can hold: logits are float32 always."""
    shape = (layer.num_experts, layer.dim)
    weight = _uniform(shape, 1 / math.sqrt(layer.dim), layer.weight_seed, 0, "router")
    return weight.to(dtype_of(layer.dtype)).float()


def names(layer: Layer) -> tuple[str, ...]:
    """Names of an expert's matrices, in storage order."""
    gated = layer.activation == "silu_gated"
    found: tuple[str, ...] = ("w1", "w3", "w2") if gated else ("w1", "w2")
    if layer.bias != "none":
        found += ("b1", "b3", "b2") if gated else ("b1", "b2")
    return found


def shape(layer: Layer, name: str) -> tuple[int, ...]:
    """w1, w3 are [H, D], w2 is [O, H], b1, b3 are [H], b2 is [O]."""
    hidden, dim, out = layer.hidden, layer.dim, layer.dim_out
    if name.startswith("b"):
        return (out,) if name == "b2" else (hidden,)
    return (out, hidden) if name == "w2" else (hidden, dim)


def matrix(layer: Layer, expert: int, name: str) -> Tensor:
    """One whole matrix in the layer's dtype; shared experts have the ids E, E + 1, ..."""
    size = shape(layer, name)
    if name.startswith("b"):
        std = BIAS_STD if layer.bias == "random" else 0.0
    else:
        gain = 2.0 if name == "w1" and layer.activation == "relu" else 1.0
        std = math.sqrt(gain / size[1])
    if std == 0.0:
        return torch.zeros(size, dtype=dtype_of(layer.dtype))
    return _uniform(size, std, layer.weight_seed, expert, name).to(dtype_of(layer.dtype))


def sliced(layer: Layer, expert: int, name: str, columns: tuple[int, int]) -> Tensor:
    """The part of a matrix that belongs to the half-open range of hidden units `columns`."""
    return cut(name, matrix(layer, expert, name), columns)


def cut(name: str, whole: Tensor, columns: tuple[int, int]) -> Tensor:
    """Of a matrix, or its gradient, what belongs to hidden units `columns`; b2 belongs to all."""
    if name == "b2":
        return whole
    if name == "w2":
        return whole[:, columns[0] : columns[1]]
    return whole[columns[0] : columns[1]]


def stacked(layer: Layer, experts: Sequence[int], name: str, columns: tuple[int, int]) -> Tensor:
    """[len(experts), ...], each filled as it is generated so that the peak is one matrix more."""
    size = list(shape(layer, name))
    if name != "b2":
        size[-1 if name == "w2" else 0] = columns[1] - columns[0]
    out = torch.empty((len(experts), *size), dtype=dtype_of(layer.dtype))
    for i, expert in enumerate(experts):
        out[i] = sliced(layer, expert, name, columns)
    return out
