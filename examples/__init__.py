"""Code to read, to run and to take from."""
