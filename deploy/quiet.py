"""Imported before gRPC by commands that print for people.

gRPC reads how much it logs from the environment when it is first imported, and by default it
reports every closed connection and every fork as news.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
