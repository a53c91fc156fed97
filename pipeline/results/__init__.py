"""What people do with a finished run: hand it on, query it, compare it."""
