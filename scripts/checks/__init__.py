"""What is checked before, at and after a start: doctor, preflight, smoke, GPU check."""
