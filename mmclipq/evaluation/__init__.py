"""Accuracy, size and time of a detector's float and int8 forms side by side."""
