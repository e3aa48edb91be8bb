"""What machines earn and cost: past periods by the ledger, coming ones by what is signed and measured. It
reads; the only rows that it writes are those of what machines cost.
"""
