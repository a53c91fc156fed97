"""What a run measures of itself, and what that means; nothing here steers a run."""
