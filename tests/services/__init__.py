"""Real services and programs that a test file starts for itself."""
