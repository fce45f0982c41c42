"""Making an integer graph: capture with torch.fx, planning, ranges, lowering."""
