"""Where an int8 detector's accuracy goes: measured layer by layer, and shown as one HTML page.

Measurement is in the modules here, drawing in :mod:`mmclipq.analysis.page`. Nothing that trains or
runs a detector imports this package.
"""
