"""The project's own speed: python -m benchmarks.speed seed|peers|limits|table"""
