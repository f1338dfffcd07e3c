"""The training loop, its ranks and precision, checkpoints and schedules."""
