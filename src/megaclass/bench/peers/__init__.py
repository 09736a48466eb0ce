"""Other people's heads as contenders, run from a directory that the user gives."""

from megaclass.bench.peers import arcface_torch

PEERS = {"arcface_torch": arcface_torch}
