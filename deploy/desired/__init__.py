"""Desired state: a file of models, pools, instances and prices, compared with what is there and made true
through the admin API.
"""
