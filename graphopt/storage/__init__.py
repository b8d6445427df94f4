"""Files to models and back, without loss and without reading weights."""
