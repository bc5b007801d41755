"""Decoding on a GPU: the host's side of a batch, compiled kernels in a folder, and launching them.

Needs neither triton nor torch. The kernels' sources are in `latentseg.kernels.triton`.
"""
