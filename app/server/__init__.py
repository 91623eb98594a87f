"""Processes and sockets: the server, its connection limits, shutdown and workers."""
