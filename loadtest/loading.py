"""Imported first by the process that programs are forked from: imports make nothing but what stays, so
collecting garbage meanwhile is a fifth of their time. `loadtest.frozen` ends it.
"""

import gc

gc.disable()
