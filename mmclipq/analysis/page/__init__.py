"""Draws an analysis: charts, photographs with boxes, and the HTML page that holds them all."""
