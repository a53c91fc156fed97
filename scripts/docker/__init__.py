"""All that talks to Docker."""
