"""The project's own speed: python -m benchmarks.speed reference|peers|beside|limits|table"""
