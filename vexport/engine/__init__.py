"""TensorRT engines, through Polygraphy."""
