"""The planner: which node and target runs each stage of a job, and when. Pure; seconds and bytes throughout."""
