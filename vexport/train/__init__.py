"""Deep training: recipes in, checkpoints that can be merged out. Needs the extra `train`."""
