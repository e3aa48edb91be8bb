"""What crosses from one process or language to another, each with one owner: keys, events, tokens, addresses.
It loads no SQL.
"""
