"""The gateway: an OpenAI-compatible front that schedules agent workflows, with nothing to change in the client."""
