"""Checkpoints for transformers: what their files say, and their models on a device with torch."""
