"""Servers that behave as told, and measurements against them, for tests and for people."""
