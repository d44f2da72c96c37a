"""What a row of the command tables is, and the tables themselves."""
