"""The parts of benchmarks/multi_objective.py, one module each."""
