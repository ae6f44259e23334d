"""Data: prompts, chat templates, fine-tuning rows, calibration text."""
