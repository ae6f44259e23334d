"""Evaluate: benchmarks, the papers' tasks, fidelity, and the statistics that compare models."""
