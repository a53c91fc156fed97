"""What is known of vLLM: its options, its caches, its logs."""
