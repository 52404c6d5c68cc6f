"""Several machines in one run: the clients of all nodes communicate over TCP.

The client of node 0 owns the run. The others start and watch their own workers, and follow its requests. Without torch.
"""
