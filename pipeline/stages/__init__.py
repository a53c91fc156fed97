"""The job's stages: read, detect, crop, ask, store, and the schema between them."""
