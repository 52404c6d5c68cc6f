"""The node's side of a launch: the process between the client and the workers."""
