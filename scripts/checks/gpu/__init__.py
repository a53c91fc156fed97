"""What only a GPU can show: three parts of at most ten minutes each, and their rehearsal on a CPU."""
