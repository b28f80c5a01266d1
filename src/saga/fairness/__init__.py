"""Who gets how much: admission to a worker's working set, shares of tenants, urgency of tasks."""
