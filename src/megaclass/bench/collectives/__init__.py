"""Collectives: how fast the processes of a job exchange what a step needs, by the size of the message."""
