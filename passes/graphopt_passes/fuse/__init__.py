"""Passes that merge operators into the constants and attributes of their neighbours."""
