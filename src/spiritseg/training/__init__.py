"""Training: a stage is the loop, a run is its stages."""
