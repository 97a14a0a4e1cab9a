"""Published times that the cost model is compared with, and where they were read.

`published.groups` has which were at hand when the formulas were written ("known"), and which were
compared after the profiles' constants had been set ("left out"; docs/results/prediction.md says
what was still changed).
"""

from __future__ import annotations

from moe.spec import LayerSpec

MIXTRAL = LayerSpec(4096, 14336, 4096, 8, 2, 2, "silu_gated", "none", dtype="bfloat16")
# Its shared expert is in the cases but not handed to the layer's config: none is built.
DEEPSEEK = LayerSpec(7168, 2048, 7168, 32, 8, 8, "silu_gated", "none", 0, "bfloat16")

# NVIDIA/Megatron-LM, baseline.json of the functional test common/moe_perf, at 57a02672: H100, EP8,
# 4,096 tokens a rank; flex dispatchers as `dedup`; group-limited routing as if free.
# (layer, dispatcher, name, forward ms, backward ms)
MOE_PERF = [
    (MIXTRAL, "alltoall", "mixtral a2a", 4.32689, 7.68433),
    (MIXTRAL, "dedup", "mixtral deepep", 4.63555, 7.85436),
    (MIXTRAL, "dedup", "mixtral hybridep", 4.34260, 7.74078),
    (DEEPSEEK, "alltoall", "deepseek a2a", 7.11917, 10.48267),
    (DEEPSEEK, "dedup", "deepseek deepep", 5.68172, 9.05514),
    (DEEPSEEK, "dedup", "deepseek hybridep", 5.39083, 8.79500),
]
# The same, recorded anew: baseline_dev.json beside it, at 8a7527dd.
MOE_PERF_AGAIN = [
    (MIXTRAL, "alltoall", "mixtral a2a", 4.25439, 7.71898),
    (MIXTRAL, "dedup", "mixtral deepep", 4.58917, 7.89245),
    (MIXTRAL, "dedup", "mixtral hybridep", 4.28241, 7.75738),
    (DEEPSEEK, "alltoall", "deepseek a2a", 7.03976, 10.47356),
    (DEEPSEEK, "dedup", "deepseek deepep", 5.55249, 9.08757),
    (DEEPSEEK, "dedup", "deepseek hybridep", 5.30450, 8.81708),
]

# deepseek-ai/DeepEP docs/legacy.md, low-latency kernels: H800, 128 tokens a rank, 7168 wide, top-8,
# fp8 there and bf16 back. (ranks, dispatch us, combine us)
LOW_LATENCY = [(8, 77, 114), (16, 118, 195), (32, 155, 273), (64, 173, 314), (128, 192, 369),
               (256, 194, 360)]  # fmt: skip

# linkedin/Liger-Kernel benchmark/data/all_benchmark_data.csv at ead96b61: fused_moe, provider liger
# 0.7.0, forward, H100, experts without a router, 2048 wide, hidden 768, top-8.
# By the sweep's axis: (tokens, experts, median ms)
LIGER = {
    "tokens": [
        (128, 128, 0.58885), (256, 128, 0.59587), (512, 128, 0.61331), (1024, 128, 0.67130),
        (2048, 128, 0.87450), (4096, 128, 1.25098), (8192, 128, 2.09571), (16384, 128, 3.89109),
        (32768, 128, 7.34240),
    ],
    "experts": [
        (8192, 8, 1.9120), (8192, 16, 1.9314), (8192, 32, 1.9690), (8192, 64, 2.0601),
        (8192, 128, 2.2252),
    ],
}  # fmt: skip

# ByteDance-Seed/VeOmni pull 460, "Torch Fused MoE" (torch._grouped_mm): H100, 32,768 tokens, no
# router. (width, hidden, experts, top-k, ms)
VEOMNI = [(2048, 768, 128, 8, 10.218), (2048, 512, 512, 10, 11.411)]

# pytorch/pytorch issue 163425, "mgmm-pytorch" (torch._grouped_mm alone), unbalanced, H200, 32
# groups. Its unit "s" is read as ms: 1.45 s would be 0.6 TFLOP/s. (rows, in, out, forward,
# backward), in and out by the order of its "D".
GROUPED_MM = [
    (32768, 6144, 2048, 1.45, 2.94), (32768, 2048, 6144, 1.47, 2.94),
    (65536, 6144, 2048, 2.71, 5.49), (65536, 2048, 6144, 2.77, 5.53),
]  # fmt: skip

# all_reduce_perf, 16 H100 in two nodes, out of place: {bytes: us}. The smallest size gives alpha,
# the largest the rate of a port; the others are left out.
ALL_REDUCE = {
    # aws-samples/awsome-distributed-training micro-benchmarks/nccl-tests/README.md at 0162aacd
    "p5.48xlarge, EFA": {
        8: 69.12, 1 << 20: 123.2, 2 << 20: 147.2, 4 << 20: 168.6, 8 << 20: 204.8, 16 << 20: 298.1,
        32 << 20: 439.7, 64 << 20: 601.5, 128 << 20: 870.3, 256 << 20: 1468.2, 512 << 20: 2559.2,
        1 << 30: 4607.6, 2 << 30: 9074.5, 4 << 30: 17286.0, 8 << 30: 33605.0, 16 << 30: 66132.0,
    },
    # lessizzmore/create-a3mega-ztan-fork ztan-NCCL-test-result at 02dd8f45
    "a3-megagpu-8g": {
        8: 135.8, 1 << 20: 203.2, 2 << 20: 254.0, 4 << 20: 364.6, 8 << 20: 571.9, 16 << 20: 977.6,
        32 << 20: 1059.9, 64 << 20: 1261.6, 128 << 20: 1652.2, 256 << 20: 2360.9,
        512 << 20: 3817.5, 1 << 30: 6759.0, 2 << 30: 12646.0, 4 << 30: 24361.0, 8 << 30: 47535.0,
    },
}  # fmt: skip

# NVIDIA/nccl issue 2169: alltoall_perf, four H100 of a node. (bytes, us); nothing is fitted.
ALL_TO_ALL = (524288000, 1174.14)

NO_FP8 = "cells have no fp8: neither its rate nor the kernels that quantise"
NO_SIZES = "the sizes of the replay (tokens, width, experts, top-k, layers) are not stated"
WHOLE_RUN = "a training run: attention, pipeline and optimiser are not a layer's"
NO_KERNEL = "no profile has this kernel"
NOT_READ = "only an excerpt of the thread could be read, which ends before this figure"
NOT_PREDICTABLE = [  # published, and why there is no prediction
    *((f"moe_perf {name} fp8, forward / backward: {times} ms", NO_FP8) for name, times in (
        ("mixtral a2a", "3.788 / 6.618"), ("mixtral deepep", "4.101 / 6.827"),
        ("mixtral hybridep", "3.701 / 6.572"), ("deepseek a2a", "7.609 / 10.126"),
        ("deepseek deepep", "6.035 / 8.602"), ("deepseek hybridep", "5.143 / 7.687"),
    )),
    ("moe_perf recorded anew as deepseek 6.943, mixtral 4.262 ms, forward",
     "none of the versions of the file that could be read has these; 12 rows of another are above"),
    *((f"DeepSpeed #8213 {name}, NCCL / DeepEP: {times} ms", NO_SIZES) for name, times in (
        ("math, skew 3.01", "99.72 / 48.02"), ("code, skew 2.56", "100.52 / 47.91"),
        ("code, skew 5.09", "115.75 / 46.40"),
    )),
    ("Parallel Folding Mixtral 8x22B: 49.3% MFU", WHOLE_RUN),
    ("Parallel Folding Qwen2-57B-A14B: 39.0% MFU", WHOLE_RUN),
    ("Liger's backward pass, 14 rows, 3.3 to 20.5 ms", "the script also differentiates a scaling "
     "of the weights, which reads and writes their whole gradients once more"),
    ("VeOmni #460 Triton, first two shapes: 11.502, 28.901 ms", NO_KERNEL),
    ("VeOmni #460 torch, shape 4096 x 1024", NOT_READ),
    ("pytorch #163425 sequential, and 131,072 rows", f"{NO_KERNEL}; {NOT_READ}"),
]  # fmt: skip
