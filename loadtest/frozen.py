"""Imported last by the process that programs are forked from. A fork that collects garbage would visit all
that is imported, and so copy it: most of the CPU of a gateway's start.
"""

import gc

gc.collect()
gc.freeze()
gc.enable()
