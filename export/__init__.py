"""Checkpoint to ONNX to bundle, with verification."""
