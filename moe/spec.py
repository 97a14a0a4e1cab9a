"""What one cell of a sweep is: frozen dataclasses, torch-free, shared by every floor.

Shape letters used everywhere: T tokens on this rank, B tokens in the global batch, D in,
H hidden, O out, E experts, K top-k, S = T*K slots, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moe.knob import knob

PEER = "peer_"  # strategies with this prefix are other systems' layers, see moe.peers
DISPATCHERS = ("local", "alltoall", "allgather", "dedup", "symm_mem")
EXPERIMENTAL = ("symm_mem",)  # dispatchers that run only where a config names them
TOKENS = ("replicated", "sharded")
MODES = ("forward", "train")
DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = ("relu", "identity", "gelu", "silu_gated")
BIASES = ("none", "zero", "random")
KERNELS = ("auto", "loop", "bmm", "dense", "grouped", "liger", "triton")
# The host need not know how many rows each expert has; but for dense, they read on a GPU where
# the experts' rows end, and leave rows behind the last one's alone.
KERNELS_WITHOUT_COUNTS = ("grouped", "dense", "liger", "triton")
KERNELS_BY_ENDS = tuple(name for name in KERNELS_WITHOUT_COUNTS if name != "dense")
WORKLOADS = (
    "learned", "balanced", "zipf", "k_hot", "hot_rank", "imbalance", "trace"
)  # fmt: skip
CHOOSERS = ("token_choice", "expert_choice")
SCOPES = ("rank", "global")
DROPS = ("position", "first_choices", "probability")
BACKENDS = ("gloo", "nccl", "mpi")
DEVICES = ("cpu", "cuda")
TOP, MODEL, ROUTER, STRATEGY, WORKLOAD = "", "model", "model.router", "strategy", "workload"
MEASURE = "measure"
GROUPED_DTYPE = "bfloat16"  # in others F.grouped_mm reads its offsets on the host
GROUPED_MOST = 1023  # experts of one F.grouped_mm on a GPU
GROUPED_BYTES = 16  # strides that F.grouped_mm takes are multiples of it
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
    """How tokens choose experts."""

    kind: str = knob("token_choice", "who chooses whom", ROUTER, allowed=CHOOSERS)
    score: str = knob("softmax", "how logits become scores", ROUTER, allowed=("softmax", "sigmoid"))
    order: str = knob(
        "before", "softmax before or after top-k", ROUTER, allowed=("before", "after")
    )
    normalize: bool = knob(
        True, "gates of a token sum to 1; null: for token_choice only", ROUTER, conf=None,
        words={None: None},
    )  # fmt: skip
    scale: float = knob(1.0, "factor on the gates", ROUTER)
    groups: int = knob(1, "group-limited top-k: experts are in this many groups", ROUTER, least=1)
    group_topk: int = knob(1, "of which the best this many are eligible", ROUTER, least=1)
    selection_bias: str = knob(
        "none", "bias on the choice alone", ROUTER, allowed=("none", "balanced")
    )
    aux_loss: float = knob(0.0, "coefficient of the balancing loss (mode=train)", ROUTER)
    capacity_factor: float = knob(0.0, "an expert's slots over its share; 0: no limit", ROUTER)
    drop: str = knob("position", "who is served first by a full expert", ROUTER, allowed=DROPS)
    scope: str = knob("rank", "extent of capacity, choice and balancing", ROUTER, allowed=SCOPES)


@dataclass(frozen=True)
class LayerSpec:
    """Sizes and function of the MoE layer. `topk` is what runs, `topk_requested` what was asked.

    Both are in the key: topk=4 clamped to 2 computes what topk=2 does, but is another row of a
    table.
    """

    dim: int = knob(32, "input width D, before model.scale", MODEL, least=1)
    hidden: int = knob(128, "hidden width H, before model.scale", MODEL, least=1)
    dim_out: int = knob(64, "output width O, before model.scale", MODEL, least=1)
    num_experts: int = knob(8, "experts E, unless num_experts is set", MODEL, least=1)
    topk: int = knob(2, "experts per token K, unless topk is set", MODEL, least=1)
    topk_requested: int = knob(2, "top-k before topk_overflow=clamp")
    activation: str = knob("relu", "activation of the hidden units", MODEL, allowed=ACTIVATIONS)
    bias: str = knob("zero", "bias of both matrices of an expert", MODEL, allowed=BIASES)
    shared_experts: int = knob(0, "experts that every token visits, of width H each", MODEL)
    dtype: str = knob("float32", "type of weights and tokens", TOP, allowed=DTYPES)
    weight_seed: int = knob(0, "seed of the weights: the top level's seed")
    router: RouterSpec = field(default_factory=RouterSpec)


@dataclass(frozen=True)
class StrategySpec:
    """How the layer is spread over ranks. Degrees of 0 mean "the strategy's default"."""

    name: str = knob("simple", "name of the strategy, or peer_<name> (docs/peers.md)", STRATEGY)
    dispatcher: str = knob(
        "local", "how tokens reach their experts; auto: local with replicated tokens, else "
        "alltoall", STRATEGY, conf="auto", allowed=("auto", *DISPATCHERS),
    )  # fmt: skip
    ep: int = knob(0, "degree of expert parallelism; 0: the strategy's default", STRATEGY)
    tp: int = knob(0, "degree of tensor parallelism; 0: the strategy's default", STRATEGY)
    overlap: int = knob(1, "chunks of all-to-all overlapped with expert compute", STRATEGY, least=1)
    placement: str = knob(
        "contiguous", "where experts are: contiguous, round_robin, by_node, expert ids or a file "
        "of them",
        STRATEGY,
    )  # fmt: skip
    expert_order: tuple[int, ...] = knob((), "expert ids in order of their places (placement=FILE)")
    hot_replicas: int = knob(0, "extra copies of the most loaded experts (ep)", STRATEGY)
    comm_dtype: str = knob(
        "", "type of what is sent; null: the layer's", STRATEGY, conf=None, allowed=DTYPES,
        words={None: "", "": ""},
    )  # fmt: skip
    kernel: str = knob("auto", "kernel of the experts' products", STRATEGY, allowed=KERNELS)
    slowdown: float = knob(0.0, "planted busy work, fraction of a step, for tests", STRATEGY)
    variant: str = knob("", "which of a peer's own ways", STRATEGY)
    graph: str = knob(
        "off", "steps are replays of a CUDA graph; both: a cell of each", MEASURE,
        allowed=("off", "on", "both"),
    )  # fmt: skip


@dataclass(frozen=True)
class WorkloadSpec:
    """What the layer is fed. Tokens are seeded by global token id, whatever the strategy."""

    batch_size: int = knob(8, "tokens B in the global batch", TOP, least=1)
    tokens: str = knob("replicated", "every rank has the batch, or its shard", TOP, allowed=TOKENS)
    mode: str = knob("forward", "a step: forward, or forward and backward", TOP, allowed=MODES)
    kind: str = knob("learned", "who chooses the experts of a token", WORKLOAD, allowed=WORKLOADS)
    parameter: float = knob(
        0.0, "zipf: exponent; k_hot: experts; hot_rank: share; imbalance: busiest over mean",
        WORKLOAD,
    )  # fmt: skip
    nominal_ep: int = knob(
        0, "ranks by which balanced, hot_rank and imbalance define a rank; 0: world_size", WORKLOAD
    )
    trace_sha256: str = knob("", "sha256 of the recorded choices, for workload.kind=trace")
    seed: int = knob(0, "seed of weights and tokens", TOP)
    cache: str = knob("warm", "as measure.cache")


@dataclass(frozen=True)
class RankLayout:
    """Where the ranks are."""

    world_size: int = knob(8, "ranks R", TOP, least=1)
    backend: str = knob(
        "gloo", "communication backend; auto: nccl with enough GPUs, else gloo", TOP, conf="auto",
        allowed=("auto", *BACKENDS),
    )  # fmt: skip
    device: str = knob(
        "cpu", "where ranks compute; auto: cuda with backend=nccl, else cpu; cuda with several "
        "ranks on gloo: checks alone (docs/clusters.md)",
        TOP, conf="auto", allowed=("auto", *DEVICES),
    )  # fmt: skip
    threads: int = knob(
        1, "threads of each rank; auto: cores // ranks, at least 1", TOP, conf="auto", least=1,
        words={"auto": 0},
    )  # fmt: skip
    nodes: int = knob(1, "hosts that the ranks are spread over evenly, in order of rank")

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.nodes

    @property
    def staged(self) -> bool:
        """Whether ranks on GPUs send their messages through the host, over gloo: such cells are
        checked, never timed."""
        return self.device == "cuda" and self.backend == "gloo" and self.world_size > 1


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
