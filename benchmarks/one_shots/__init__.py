"""The parts of benchmarks/one_shot.py, one module each."""
