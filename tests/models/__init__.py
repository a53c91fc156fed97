"""Builders of tiny checkpoints for tests."""
