"""A small world with known answers: drawn dog-park scenes, bundled pictures, tiny models and what makes them all."""
