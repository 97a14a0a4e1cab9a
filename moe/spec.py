"""What one cell of a sweep is: frozen dataclasses, torch-free, shared by every floor.

Shape letters used everywhere: T tokens on this rank, B tokens in the global batch, D in,
H hidden, O out, E experts, K top-k, S = T*K slots, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PEER = "peer_"  # strategies with this prefix are other systems' layers, see moe.peers
DISPATCHERS = ("local", "alltoall", "allgather", "dedup")
TOKENS = ("replicated", "sharded")
MODES = ("forward", "train")
DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = ("relu", "identity", "gelu", "silu_gated")
BIASES = ("none", "zero", "random")
KERNELS = ("auto", "loop", "bmm", "dense", "grouped")
WORKLOADS = (
    "learned", "balanced", "zipf", "k_hot", "hot_rank", "imbalance", "trace"
)  # fmt: skip
SCOPES = ("rank", "global")
DROPS = ("position", "first_choices", "probability")
BACKENDS = ("gloo", "nccl", "mpi")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Unsupported(ValueError):
    """A cell that cannot be run: names the field, its value, what is allowed and what to do."""

    def __init__(self, field_name: str, value: object, allowed: str, remedy: str) -> None:
        self.field = field_name
        self.value = value
        self.allowed = allowed
        self.remedy = remedy
        super().__init__(f"{field_name}={value}: allowed is {allowed}; {remedy}")


@dataclass(frozen=True)
class RouterSpec:
    """How tokens choose experts. `order`: softmax before or after the top-k selection."""

    kind: str = "token_choice"  # token_choice | expert_choice
    score: str = "softmax"  # softmax | sigmoid
    order: str = "before"  # before | after
    normalize: bool = True  # a token's gates are divided by their sum
    scale: float = 1.0
    groups: int = 1  # group-limited top-k: experts in `groups` groups ...
    group_topk: int = 1  # ... of which the best `group_topk` are eligible
    selection_bias: str = "none"  # none | balanced (auxiliary-loss-free: bias on selection only)
    aux_loss: float = 0.0  # coefficient of the balancing loss, as in transformers; mode=train only
    capacity_factor: float = 0.0  # 0 is dropless
    drop: str = "position"  # position | first_choices | probability: who is served first
    scope: str = "rank"  # rank | global: extent of capacity, expert choice, balancing loss


@dataclass(frozen=True)
class LayerSpec:
    """Sizes and function of the MoE layer. `topk` is what runs, `topk_requested` what was asked."""

    dim: int = 32  # D
    hidden: int = 128  # H
    dim_out: int = 64  # O
    num_experts: int = 8  # E
    topk: int = 2  # K
    topk_requested: int = 2
    activation: str = "relu"
    bias: str = "zero"
    shared_experts: int = 0  # experts every token visits, hidden size H each
    dtype: str = "float32"
    weight_seed: int = 0
    router: RouterSpec = field(default_factory=RouterSpec)


@dataclass(frozen=True)
class StrategySpec:
    """How the layer is spread over ranks. Degrees of 0 mean "the strategy's default"."""

    name: str = "simple"
    dispatcher: str = "local"
    ep: int = 0
    tp: int = 0
    overlap: int = 1  # chunks of all-to-all overlapped with expert compute; 1 is none
    placement: str = "contiguous"  # contiguous | round_robin | explicit
    expert_order: tuple[int, ...] = ()  # for placement=explicit: expert ids in slot order
    hot_replicas: int = 0  # extra copies of the most loaded experts (ep)
    comm_dtype: str = ""  # "" is the layer's dtype
    kernel: str = "auto"
    slowdown: float = 0.0  # planted busy work, fraction of the step (A/B experiments only)
    variant: str = ""  # peers: which of the system's own ways; "" is the peer's default


@dataclass(frozen=True)
class WorkloadSpec:
    """What the layer is fed. Tokens are seeded by global token id, whatever the strategy."""

    batch_size: int = 8  # B, global
    tokens: str = "replicated"
    mode: str = "forward"
    kind: str = "learned"
    parameter: float = 0.0  # zipf exponent, k_hot count, hot_rank share or imbalance target
    nominal_ep: int = 0  # ep degree by which hot_rank and imbalance define a rank; 0 is R
    trace_sha256: str = ""  # of the routing trace, for kind=trace
    seed: int = 0
    cache: str = "warm"  # warm | cold


@dataclass(frozen=True)
class RankLayout:
    """Where the ranks are."""

    world_size: int = 8  # R
    backend: str = "gloo"
    device: str = "cpu"
    threads: int = 1
    nodes: int = 1  # hosts that the ranks are spread over evenly, in order of rank

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.nodes


@dataclass(frozen=True)
class Cell:
    """One point of the sweep."""

    layer: LayerSpec = field(default_factory=LayerSpec)
    strategy: StrategySpec = field(default_factory=StrategySpec)
    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    placement: RankLayout = field(default_factory=RankLayout)


def shard_bounds(total: int, parts: int, index: int) -> tuple[int, int]:
    """Half-open range of items that part `index` owns; the first `total % parts` own one more."""
    base, extra = divmod(total, parts)
    start = index * base + min(index, extra)
    return start, start + base + (index < extra)
