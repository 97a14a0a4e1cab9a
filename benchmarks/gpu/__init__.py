"""One short run on one GPU: `python -m benchmarks.gpu --out DIR`; what came out: docs/gpu.md."""
