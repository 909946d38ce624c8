"""What an evaluation says beyond its first figures: per class, by confidence, and which labels may be wrong."""
