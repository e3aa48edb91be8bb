"""The processes of a gateway: sockets, supervision, logs."""
