"""The real services, as processes."""
