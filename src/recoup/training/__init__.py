"""Training, shared by the repair and by fine-tuning: the optimizer's step, the learning rate, checkpoints."""
