"""Predictions by several organisations at once: each runs one role of an MPC backend as a process of its own.

messages    what the processes say to each other besides the protocol itself
sessions    many parties of one process, moved by the messages that arrive
seats       who is who in a session, and whether two of them are one machine
place       a process that serves: the server, and the dealer, helper or third that it works with
client      the one who asks
"""
