"""What a run repairs with: on-policy self-distillation or a baseline, one word each (`config.METHODS`), and what each cost."""
