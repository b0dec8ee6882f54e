"""What `bench placement` plans: jobs, networks, requirements and traces, the best plans known, and the peers."""
