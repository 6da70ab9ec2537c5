"""Programs of ours that drive an agent which needs a conversation, and write its transcript.

``builtin`` is our own agent. Its conversation (``loop``, over ``conversation``) does no I/O: the model, the tools, the
transcript, the inbox, the gate and the parking are passed in.
"""
