"""Training with lightning and timm: deep training, its data and its checkpoints."""
