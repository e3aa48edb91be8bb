"""Everything on one machine: environments, servers, processes, a demo tenant. Other parts are reached over
HTTP and as processes only.
"""
