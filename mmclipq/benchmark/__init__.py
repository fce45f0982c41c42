"""Time and size: rows in turn in one run, rivals, parts, where the time goes."""
