"""Studies: configuration, data, training, records."""
