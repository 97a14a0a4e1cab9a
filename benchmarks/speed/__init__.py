"""The project's own speed: python -m benchmarks.speed seed|peers|beside|limits|table"""
