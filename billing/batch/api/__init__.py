"""The routes of files and batches, as the gateway passes them on."""
