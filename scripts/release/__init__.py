"""Bundles for hosts without a network, and upgrades."""
