"""Recover: on-policy self-distillation from a historical checkpoint."""
