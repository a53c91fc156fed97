"""Detectors exported as ONNX: what their files say, what each family's outputs mean."""
