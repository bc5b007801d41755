"""Decoding on a GPU: the host's side of a batch, compiled kernels in a folder, devices, and launching.

Needs neither triton nor torch. The kernels' sources are in `latentseg.kernels.triton`.
"""
