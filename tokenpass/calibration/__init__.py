"""`tokenpass.calibrate`: run a few batches, keep statistics of what every projection multiplies."""

from tokenpass.calibration.calibrating import calibrate

__all__ = ["calibrate"]
