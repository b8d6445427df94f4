"""int8: where it pays, with which ranges and which integers, within an accuracy budget."""
