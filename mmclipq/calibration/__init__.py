"""Streaming range statistics and the choice of exponents."""
