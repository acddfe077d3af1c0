"""Photographs on disk to batches on the GPU."""
