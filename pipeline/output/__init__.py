"""A run's folder: tables, parts, manifest, resume plan, report, publication."""
