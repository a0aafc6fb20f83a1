"""What goes wrong with a peer."""


class PeerError(Exception):
    """A peer could not do something. The message is one sentence."""


class LateError(PeerError):
    """A peer gave no answer within the limit."""
