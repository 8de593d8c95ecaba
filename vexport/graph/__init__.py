"""ONNX graphs: writing, rewriting, simplifying and reading them."""
