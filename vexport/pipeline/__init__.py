"""One verb per file: the only place where stages meet. Each takes and returns artifacts."""
