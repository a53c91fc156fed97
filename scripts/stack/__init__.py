"""The services: what they are, how they start as processes, when they are ready."""
