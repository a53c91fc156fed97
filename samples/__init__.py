"""A small world with known answers: drawn scenes of dog parks, bundled pictures, tiny models, and their scripts."""
