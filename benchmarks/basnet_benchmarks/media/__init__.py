"""Proofs about pictures and folder jobs that take minutes: kills at random moments, odd files, damaged headers.

python -m basnet_benchmarks.media kills FOLDER -o kills.md
"""

__all__: list[str] = []
