"""Several machines in one run: the launching processes of all nodes speak with one another over TCP.

The one of node 0 owns the run; the others start and watch their own workers and do what they are told. Without torch.
"""
