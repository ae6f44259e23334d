"""Diagnose: what was lost, per token and per layer."""
