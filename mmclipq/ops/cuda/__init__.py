"""Compiled operators of NVIDIA GPUs."""
