"""What each layer's rounding does to detections, which layers stay in float, which ranges stand."""
