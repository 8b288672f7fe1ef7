"""From facts to a rewritten graph: candidates, prices, plan, rewrite, and the report."""

from tokenpass.pipeline.planned import Planned
from tokenpass.pipeline.planning import make_plan
from tokenpass.pipeline.reporting import report_of

__all__ = ["Planned", "make_plan", "report_of"]
