"""The gates: what a candidate must show before it takes the champion's place."""
