"""Measurements, and the rows they recorded (results/)."""
