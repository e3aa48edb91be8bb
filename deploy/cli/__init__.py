"""The `taas` command. One module a noun; each speaks to the admin API and knows nothing else of the
product.
"""
