"""Pictures of what the network is shown."""
