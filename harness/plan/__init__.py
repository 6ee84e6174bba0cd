"""Plans: `harness-plan` says what a run will cost; may import `run`, `report` and what lies below them."""

from harness.plan.costs import plan, plan_point

__all__ = ["plan", "plan_point"]
