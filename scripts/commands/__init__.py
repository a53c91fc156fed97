"""The operator's commands on the stack."""
