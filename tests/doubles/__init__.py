"""Servers that stand in for the detector and the model server."""
