"""Documents, presets and code agree."""
