"""andromeda_scale: distributed scaling benchmarks for training transformers."""

__version__ = "0.1.0"
