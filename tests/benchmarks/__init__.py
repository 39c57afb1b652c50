"""What the service costs, as ratios to yardsticks that run in the same minutes on the same server."""
