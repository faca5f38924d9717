"""The agent-controller protocol [0031]-[0036]: messages, their codec, and the session; also the data plane's socket.

One Python table (`channel.messages`) describes every message. The codec, the C header and the wire reference are made
from it. Nothing here does I/O, reads a clock or draws a random number.
"""
