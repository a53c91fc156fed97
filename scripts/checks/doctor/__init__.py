"""Say what this host has, what the stack requires and what to do about the difference; change nothing."""
