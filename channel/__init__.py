"""The agent-controller protocol [0031]-[0036]: messages, their codec, and the session; also the data plane's socket.

One Python table (`channel.messages`) describes every message. The codec, the C header and the wire reference are made
from it. Nothing here does I/O, reads a clock or draws a random number.

Versions. What speaks version N also speaks N - 1, so neighbours N - 1, N and N + 1 work together, in any order of
upgrades; parts that are two versions apart refuse each other (BAD_VERSION, and both say whom to upgrade first). HELLO
and DP_HELLO name lowest and highest, the highest common one is chosen, and nothing is sent that it does not know:
* Fields are only appended, never changed: those that a version adds to a message (`fields.Since`) lie behind everything
  that was there before, laid out by the same rules. A receiver ignores what lies behind the last field that it knows;
  what an older peer leaves out takes its default, which has to mean what was so before the field existed.
* New messages (`Row.since`), and new values of enumerations and flags, go only to a peer whose version knows them. A
  request that it does not know is answered at once, by our own session, with BAD_VERSION; a notice raises PeerTooOld.
* HELLO, its response, DP_HELLO and GOODBYE are never anything but appended to.
"""
