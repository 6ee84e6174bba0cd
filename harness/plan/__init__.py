"""Plans: `harness-plan` says what a run will cost; may import `run`, `report` and what lies below them."""
