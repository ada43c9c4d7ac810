"""Parity tests never touch the network: every model has random weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
