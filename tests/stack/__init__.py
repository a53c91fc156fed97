"""The stack, as processes and in containers, started once for all tests of this folder."""
