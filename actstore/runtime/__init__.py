"""Running work items: in this process, or over a pool of Ray workers that may die."""
