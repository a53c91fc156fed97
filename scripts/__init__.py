"""What an operator does to the stack."""

import os

# Before anything imports Daft, which reports its use to its makers unless told otherwise; services inherit it.
os.environ.setdefault("DO_NOT_TRACK", "true")
