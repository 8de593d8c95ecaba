"""VanillaNet in PyTorch: the variants, both forms, checkpoints and the merge."""
