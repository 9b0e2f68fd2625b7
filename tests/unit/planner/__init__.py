"""The planner: counts, rooflines and the worked numbers that they reproduce."""
