"""Models' files: what a checkpoint holds, and how it comes from the hub."""
