"""The commands that are not the trainer, and what only they need."""
