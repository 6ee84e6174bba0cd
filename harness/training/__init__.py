"""Training: batches, the trainer, processes, evaluation and metrics; may import `measure` and what lies below it."""
