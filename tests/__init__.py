"""The proof: unit, contract and stack tests."""
