"""What models are run on to verify, measure and calibrate: the user's data, or drawn."""
