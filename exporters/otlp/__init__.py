"""OTLP: over the network, once or while the training goes on, and as JSON Lines."""
