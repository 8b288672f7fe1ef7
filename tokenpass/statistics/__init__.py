"""What calibration keeps of a model's activations: the values, their merging and their file."""

from __future__ import annotations

from tokenpass.statistics.finding import find_calibration
from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.kept import STATISTICS, Observed, Statistic
from tokenpass.statistics.stored import Calibration, SiteStatistics, weight_fingerprint

__all__ = [
    "STATISTICS",
    "Calibration",
    "Histogram",
    "Observed",
    "SiteStatistics",
    "Statistic",
    "find_calibration",
    "weight_fingerprint",
]
