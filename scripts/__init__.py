"""What an operator does to the stack."""
