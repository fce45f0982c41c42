"""Accuracy and exactness of a detector's forms side by side."""
