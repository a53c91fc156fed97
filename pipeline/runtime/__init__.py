"""What holds for a whole run: memory budget, cancellation, watchdog, progress."""
