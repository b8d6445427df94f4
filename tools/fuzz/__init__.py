"""Random valid models through the bare pipeline: whatever it gets wrong is a bug, verification or not."""
