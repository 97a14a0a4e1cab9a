"""The weights of a layer, defined by (seed, expert, matrix). Every strategy takes slices of them.

Matrices are uniform with the variance that keeps activations near one. They are generated on the
device that they are for, and rounded to the layer's dtype: integer arithmetic and products that
every device rounds alike, so that the bits are the same everywhere.

Shape letters: D in, H hidden, O out, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moe.spec import LayerSpec

_STREAMS = ("router", "w1", "w3", "w2", "b1", "b3", "b2", "tokens", "cotangent", "routing")
_CHUNK = 1 << 16  # elements; the temporaries of one chunk stay in a processor's cache
_GPU_CHUNK = 1 << 26  # the fewer launches, the better
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
    """Fills the flat float32 tensor `out` with U(-1, 1); element i follows from (seed, item,
    stream, start + i).

    A counter goes through murmur3's finaliser. This is several times faster than a sequential
    generator, and any part can be generated without the elements before it.
    """
    state = _mix(seed, item, _STREAMS.index(stream))
    low, high = _signed(state), _signed(state >> 32)
    chunk = chunk_of(out.device)
    counter = torch.arange(min(chunk, out.numel()), dtype=torch.int32, device=out.device)
    other = torch.empty_like(counter)
    for begin in range(0, out.numel(), chunk):
        part = out[begin : begin + chunk]
        bits = counter[: part.numel()] * _signed(0x9E3779B1)
        bits += _signed((start + begin) * 0x9E3779B1 + low)
        _finalise(bits, high, other[: part.numel()], part)
    return out


def chunk_of(device: torch.device) -> int:
    """Elements that are generated at once."""
    return _GPU_CHUNK if device.type == "cuda" else _CHUNK


def _finalise(bits: Tensor, high: int | Tensor, other: Tensor, out: Tensor) -> None:
    """Writes U(-1, 1) to `out`: murmur3's finaliser with `high` added twice. Overwrites `bits` and
    `other`."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits ^= torch.bitwise_right_shift(bits, shift, out=other).bitwise_and_(
            (1 << (32 - shift)) - 1  # torch shifts the sign in
        )
        bits *= _signed(factor)
        bits += high
    bits ^= torch.bitwise_right_shift(bits, 16, out=other).bitwise_and_(0xFFFF)
    torch.mul(bits, 2.0**-31, out=out)


def _rows(out: Tensor, seed: int, items: Sequence[int], stream: str) -> Tensor:
    """Fills row i of `out` [len(items), n] as `uniform_` does for items[i]; short rows all at
    once."""
    if out.shape[1] > chunk_of(out.device) // 2:
        for row, item in zip(out, items, strict=True):
            uniform_(row, seed, item, stream)
        return out
    states = [_mix(seed, item, _STREAMS.index(stream)) for item in items]
    low_N1, high_N1 = (
        torch.tensor(
            [[_signed(state >> shift)] for state in states], dtype=torch.int32, device=out.device
        )
        for shift in (0, 32)
    )
    counter = torch.arange(out.shape[1], dtype=torch.int32, device=out.device)
    bits = counter * _signed(0x9E3779B1) + low_N1
    _finalise(bits, high_N1, torch.empty_like(bits), out)
    return out


CPU = torch.device("cpu")


def router(layer: LayerSpec, device: torch.device = CPU) -> Tensor:
    """[E, D] float32 router weights, with values that the layer's dtype can represent."""
    flat = torch.empty(layer.num_experts * layer.dim, device=device)
    uniform_(flat, layer.weight_seed, 0, "router").mul_(math.sqrt(3) / math.sqrt(layer.dim))
    return flat.view(layer.num_experts, layer.dim).to(dtype_of(layer.dtype)).float()


def names(layer: LayerSpec) -> tuple[str, ...]:
    """Names of an expert's matrices, in storage order."""
    gated = layer.activation == "silu_gated"
    matrix_names: tuple[str, ...] = ("w1", "w3", "w2") if gated else ("w1", "w2")
    if layer.bias != "none":
        matrix_names += ("b1", "b3", "b2") if gated else ("b1", "b2")
    return matrix_names


def shape(layer: LayerSpec, name: str) -> tuple[int, ...]:
    """w1, w3 are [H, D], w2 is [O, H], b1, b3 are [H], b2 is [O]."""
    hidden, dim, out = layer.hidden, layer.dim, layer.dim_out
    if name.startswith("b"):
        return (out,) if name == "b2" else (hidden,)
    return (out, hidden) if name == "w2" else (hidden, dim)


def matrix(layer: LayerSpec, expert: int, name: str) -> Tensor:
    """One whole matrix in the layer's dtype; shared experts have the ids E, E + 1, ..."""
    return matrices(layer, [expert], name)[0]


def matrices(
    layer: LayerSpec, experts: Sequence[int], name: str, device: torch.device = CPU
) -> Tensor:
    """[len(experts), ...]: `matrix` of several experts."""
    size = shape(layer, name)
    if name.startswith("b"):
        std = BIAS_STD if layer.bias == "random" else 0.0
    else:
        gain = 2.0 if name == "w1" and layer.activation == "relu" else 1.0
        std = math.sqrt(gain / size[1])
    if std == 0.0:
        return torch.zeros((len(experts), *size), dtype=dtype_of(layer.dtype), device=device)
    flat = torch.empty(len(experts), math.prod(size), device=device)
    _rows(flat, layer.weight_seed, experts, name).mul_(std * math.sqrt(3))
    return flat.view(len(experts), *size).to(dtype_of(layer.dtype))


def _together(
    layer: LayerSpec, experts: Sequence[int], device: torch.device
) -> Iterator[Sequence[int]]:
    """Yields groups of experts whose matrices are generated at once: many small ones or one
    large."""
    largest = max(math.prod(shape(layer, name)) for name in names(layer))
    number = max(1, chunk_of(device) // largest)
    for begin in range(0, len(experts), number):
        yield experts[begin : begin + number]


def by_expert(
    layer: LayerSpec, experts: Sequence[int], device: torch.device = CPU
) -> Iterator[dict[str, Tensor]]:
    """Yields {name: whole matrix} for each expert in turn."""
    for some in _together(layer, experts, device):
        stacks = {name: matrices(layer, some, name, device) for name in names(layer)}
        for place in range(len(some)):
            yield {name: whole[place] for name, whole in stacks.items()}


def sliced(layer: LayerSpec, expert: int, name: str, columns: tuple[int, int]) -> Tensor:
    """The part of a matrix that belongs to the hidden units `columns`, a half-open range."""
    return cut(name, matrix(layer, expert, name), columns)


def cut(name: str, whole: Tensor, columns: tuple[int, int]) -> Tensor:
    """Cuts the hidden units `columns` out of a matrix, a gradient of its shape, or a stack of
    either; b2 stays whole."""
    if name == "b2":
        return whole
    hidden = -2 if name in ("w1", "w3") else -1
    return whole.narrow(hidden, columns[0], columns[1] - columns[0])


def stacked(
    layer: LayerSpec,
    experts: Sequence[int],
    name: str,
    columns: tuple[int, int],
    device: torch.device = CPU,
) -> Tensor:
    """[len(experts), ...]: the hidden units `columns` of matrix `name`, filled expert by expert to
    limit peak memory."""
    size = list(shape(layer, name))
    if name != "b2":
        size[-1 if name == "w2" else 0] = columns[1] - columns[0]
    out = torch.empty((len(experts), *size), dtype=dtype_of(layer.dtype), device=device)
    begin = 0
    for some in _together(layer, experts, device):
        end = begin + len(some)
        out[begin:end] = cut(name, matrices(layer, some, name, device), columns)
        begin = end
    return out
